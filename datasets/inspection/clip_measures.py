"""What can be measured of one clip: length, rate, loudness, and the faults of a recording that nobody hears at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.clip import Clip, ClipInfo, ClipSource, KeepsChannels
from fedstill.datasets.decoding.sound.cancellation import cancels_out, is_suspicious

SILENCE = -60.0
"""dBFS, as the root of the mean square. Below it are only the noise of a microphone and of 16 bits."""
LOUDEST = 20.0
"""dBFS. Above it samples are surely on another scale than -1 to 1: whole numbers stored as floats, for instance."""
FULL_SCALE = 0.999
CLIPPED_RUN = 3
"""Successive samples at full scale that no sound has by itself."""


@dataclass(frozen=True, slots=True)
class ClipMeasures:
    """One clip that could be decoded.

    Attributes:
        info: identity, split, class.
        length: seconds of a waveform, or columns of a feature matrix.
        sample_rate: Hz; 0 for a feature matrix, which has no level either.
        loudness: dBFS (root mean square) of the mix: minus infinity for digital silence, None for features.
        constant: all samples are equal.
        antiphase: the channels cancel out when they are mixed.
        clipped: a channel stays at full scale for ``CLIPPED_RUN`` samples or more.
        size: height and width of the frames in pixels.
        rows: of a feature matrix.
    """

    info: ClipInfo
    length: float
    sample_rate: int
    loudness: float | None
    constant: bool
    antiphase: bool
    clipped: bool
    size: tuple[int, int]
    rows: int = 0

    @property
    def silent(self) -> bool:
        """Whether there is nothing to hear in the mix."""
        return self.loudness is not None and self.loudness < SILENCE

    @property
    def problem(self) -> str:
        """What makes the clip unfit, and what to do; empty if nothing does."""
        if self.antiphase:
            return "its channels cancel out when mixed (antiphase): invert one of them, or keep only one"
        if self.loudness is not None and self.loudness > LOUDEST:
            return f"its samples are not between -1 and 1 ({self.loudness:+.0f} dBFS): scale them"
        return "its sound is silence: record it again or remove it" if self.constant else ""


def measure(
    source: ClipSource, position: int, look: Callable[[Clip], object] = lambda _: None
) -> ClipMeasures:
    """Decode clip ``position`` once and measure it; ``look`` is given it, too.

    Raises:
        DataError: naming the file and what to do.
    """
    if isinstance(source, KeepsChannels):
        clip, channels = source.load_with_channels(position)
    else:
        clip, channels = source.load(position), None
    look(clip)
    size = clip.frames.shape[1], clip.frames.shape[2]
    if not clip.sample_rate:
        constant = bool(clip.audio.min() == clip.audio.max())
        return ClipMeasures(
            clip.info, clip.audio.shape[1], 0, None, constant, False, False, size, len(clip.audio)
        )
    return _with_sound(clip, clip.audio[None] if channels is None else channels, size)


def _with_sound(clip: Clip, channels: npt.NDArray[np.float32], size: tuple[int, int]) -> ClipMeasures:
    level = float(np.sqrt(np.mean(np.square(clip.audio, dtype=np.float64))))
    return ClipMeasures(
        info=clip.info,
        length=len(clip.audio) / clip.sample_rate,
        sample_rate=clip.sample_rate,
        loudness=20 * np.log10(level) if level > 0 else -np.inf,
        constant=bool(clip.audio.min() == clip.audio.max()),
        antiphase=is_suspicious(clip.audio) and cancels_out(channels),
        clipped=any(map(_is_clipped, channels)),
        size=size,
    )


def _is_clipped(samples: npt.NDArray[np.float32]) -> bool:
    for edge in (samples.max(), samples.min()):
        if abs(edge) < FULL_SCALE:
            continue
        full = samples >= FULL_SCALE if edge > 0 else samples <= -FULL_SCALE
        run = np.ones(CLIPPED_RUN, int)
        if len(full) >= CLIPPED_RUN and (np.convolve(full, run, "valid") == CLIPPED_RUN).any():
            return True
    return False
