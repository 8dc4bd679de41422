"""What a device's model must be able to do, whichever library runs it (torch, onnxruntime)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class FeatureArrays(NamedTuple):
    """One float32 (n, width) array per modality."""

    audio: npt.NDArray[np.float32]
    visual: npt.NDArray[np.float32]


class Runtime(Protocol):
    """A student at work.

    Attributes:
        class_names: order of the logits.
        version: hash of the student's weights; the cloud finds its heads by it.
    """

    class_names: tuple[str, ...]
    version: str

    def features(self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]) -> FeatureArrays:
        """Audio float32 (n, bins, steps), frames uint8 (n, count, channels, size, size) -> (n, width) each."""
        ...

    def logits(self, features: FeatureArrays) -> npt.NDArray[np.float32]:
        """The local joint head: float32 (n, classes)."""
        ...

    def compress(self, features: FeatureArrays, rate: float) -> FeatureArrays:
        """Features of one rung of the ladder; the identity at rate 1."""
        ...
