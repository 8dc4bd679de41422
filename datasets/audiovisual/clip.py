"""The common form of a clip in every dataset, so that no later code depends on where a clip came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Split = Literal["public", "private"]

EMOTIONS = ("neutral", "happy", "sad", "fear", "disgust", "angry")
"""CREMA-D's six classes in the order of the thesis' line of work (NEU, HAP, SAD, FEA, DIS, ANG)."""


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """A clip's description before it is decoded.

    Attributes:
        clip_id: unique in its dataset.
        split: who has the clip, the cloud or a device.
        speaker: the person heard and seen.
        label: None if the owner has not labelled it.
        group: clips with the same group come from one recording; empty if no other clip does. Read ``recording``.
    """

    clip_id: str
    split: Split
    speaker: str
    label: int | None
    group: str = ""

    @property
    def recording(self) -> str:
        """The group, or the clip itself if it has none. Two faces beside one sound are one recording, not two."""
        return self.group or self.clip_id


@dataclass(frozen=True, slots=True)
class Clip:
    """One decoded audio-visual clip.

    Attributes:
        info: identity, split, speaker, label and recording.
        audio: float32; a mono waveform in [-1, 1] of shape (samples,) at ``sample_rate`` Hz, or a ready
            feature matrix of shape (features, time), which is then used as it is.
        frames: uint8 RGB frames of shape (count, height, width, 3), in time order, count >= 1.
        sample_rate: Hz of a waveform; 0 for a feature matrix.
        frames_between: reads as many frames of a part of the clip, given its start and end in seconds of the sound;
            None if ``frames`` are all there are, uniformly spaced in time.
        face: of frames that were cut to a face before, whether there was one; None for whole pictures.
    """

    info: ClipInfo
    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]
    sample_rate: int
    frames_between: Callable[[float, float], npt.NDArray[np.uint8]] | None = None
    face: bool | None = None


class ClipSource(Protocol):
    """A dataset on disk or generated from a seed. Iteration decodes; ``index`` is cheap and in iteration order.

    Implemented by ``ManifestSource``, ``PreparedSource`` and ``SyntheticSource``.
    """

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def index(self) -> tuple[ClipInfo, ...]: ...

    def load(self, position: int) -> Clip:
        """Decode clip ``position`` of ``index``. Raises DataError naming the file and what to do."""
        ...


@runtime_checkable
class KeepsChannels(Protocol):
    """A ClipSource that still knows what was recorded."""

    def load_with_channels(self, position: int) -> tuple[Clip, npt.NDArray[np.float32] | None]:
        """Clip ``position`` and the sound before it was mixed, float32 (channels, samples); None for a feature matrix
        or if nobody knows. Raises DataError."""
        ...
