"""A voice made by code, which the real detector hears as speech, and a face detector that takes white squares for
faces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from fedstill.datasets.focus import faces

FORMANTS = ((700, 80), (1200, 90), (2600, 120))  # centre and bandwidth in Hz, of an "ah"


def voice(seconds: float, rate: int = 16_000) -> np.ndarray:
    """float32 (samples,): "ah", sung with a vibrato, four syllables a second."""
    times = np.arange(round(seconds * rate)) / rate
    cycles = np.cumsum(120 * (1 + 0.1 * np.sin(2 * np.pi * 2 * times))) / rate
    sound = np.diff(np.floor(cycles), prepend=0)
    for centre, width in FORMANTS:
        radius = np.exp(-np.pi * width / rate)
        sound = lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * centre / rate), radius**2], sound)
    sound *= 0.5 - 0.5 * np.cos(2 * np.pi * 4 * times)
    level: float = np.abs(sound).max()
    return np.asarray(0.5 * sound / level, np.float32)


def recording(before: float, spoken: float, after: float, rate: int = 16_000) -> np.ndarray:
    """float32 (samples,): faint noise, the voice, faint noise; each so many seconds."""
    length = round((before + spoken + after) * rate)
    sound = np.random.default_rng(1).normal(0, 1e-3, length).astype(np.float32)
    if not spoken:
        return sound
    said, begin = voice(spoken, rate), round(before * rate)
    sound[begin : begin + len(said)] += said
    return sound


class WhiteSquares:
    """Stands for OpenCV's cascade: the one "face" is all that is nearly white."""

    def detectMultiScale(self, grey: np.ndarray, *settings: Any, **more: Any) -> Any:  # noqa: N802
        rows, columns = np.nonzero(grey > 220)
        if not len(rows):
            return ()
        top, left = rows.min(), columns.min()
        return np.array([[left, top, columns.max() - left + 1, rows.max() - top + 1]])


def white_squares_are_faces(patch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2", reason="install fedstill[speech] to test it")
    patch.setattr(faces, "_cascade", WhiteSquares)


def square_at(left: int, top: int, side: int = 20, height: int = 60, width: int = 100) -> np.ndarray:
    """uint8 (height, width, 3): dark, with one white square."""
    picture = np.full((height, width, 3), 30, np.uint8)
    picture[top : top + side, left : left + side] = 255
    return picture
