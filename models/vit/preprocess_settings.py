"""The settings by which a picture becomes a ViT's input; without torch, so that whatever keeps them needs none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Channels = tuple[float, float, float]
"""Red, green, blue."""
LEAST_CROP = 0.25
"""The resized picture has the inverse square of it times the network's pixels."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a picture becomes a ViT's input; the fields are those of timm's ``pretrained_cfg``.

    Weights expect the values that they were trained on, and a head the features of such values. So it is stored with
    a task. The defaults are what every task had before it was stored.

    Attributes:
        mean, std: of each channel, for values from 0 to 1.
        interpolation: of the resizing, antialiased.
        crop_pct: side of the network's input over that of the resized picture, at most 1.
        crop_mode: ``center`` takes the central square; ``squash`` the whole picture, whatever its shape.

    Raises:
        ValueError: a value that cannot be; begins with the field's name.
    """

    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash"] = "center"

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"mean: {self.mean} is not between 0 and 1, as values of a picture are here")
        if not all(0 < value <= 1 for value in self.std):
            raise ValueError(f"std: {self.std} is not above 0 and at most 1")
        if not LEAST_CROP <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct: {self.crop_pct} is not between {LEAST_CROP} and 1")

    def resized(self, size: int) -> int:
        """Side of the resized square, of which the network sees the central ``size`` pixels (timm's rounding)."""
        return math.floor(size / self.crop_pct)


PLAIN = Preprocess()
"""Of every task from before it was stored, and of a network that says nothing else."""
