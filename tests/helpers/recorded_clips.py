"""Clips of noise for stores that must keep how each clip was recorded, when it does not matter what is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store

RATE = 16_000


class NoisyClips:
    """Half a second of noise and a noisy picture each, the classes in turn: a ClipSource."""

    name = "noise"

    def __init__(self, class_names: Sequence[str], clips: int) -> None:
        self.class_names = tuple(class_names)
        self.index = tuple(
            ClipInfo(f"clip{number}", "private", "ann", number % len(self.class_names))
            for number in range(clips)
        )

    def load(self, position: int) -> Clip:
        rng = np.random.default_rng(position)
        sound = (0.03 * rng.standard_normal(RATE // 2)).astype(np.float32)
        return Clip(self.index[position], sound, rng.integers(0, 256, (1, 24, 24, 3), np.uint8), RATE)


def noisy_store(
    folder: Path, class_names: Sequence[str], clips: int, features: tuple[int, int] = (2, 3)
) -> None:
    """Their store, with the profile of each clip, and zeros of shape ``features`` (bins, steps) as its sound."""
    build_store(
        NoisyClips(class_names, clips), range(clips), AudioSpec(), FrameSpec(size=24), folder,
        transform=lambda audio, rate, spec: np.zeros(features, np.float32),
    )  # fmt: skip
