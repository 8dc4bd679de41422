"""How clips become tensors: the two small specifications in every model's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class AudioSpec:
    """From waveform to a (bins, steps) matrix.

    ``spectrogram`` is the thesis' log power spectrogram (n_fft 512, hop 159, no centre padding):
    257 x 299 for 3 s and 257 x 1004 for 10 s. ``log_mel`` is the light variant for small devices.
    Both repeat a short clip until it fills ``seconds``, then cut. The spectrogram fixes ``n_fft`` 512 and ``hop``
    159, whatever is set here.
    """

    representation: Literal["spectrogram", "log_mel"] = "log_mel"
    sample_rate: int = 16_000
    seconds: float = 2.5
    n_fft: int = 512
    hop: int = 256
    mel_bins: int = 64
    normalise: Literal["clip", "fixed"] = "clip"
    """``clip`` z-scores each clip, so that gain does not count (the thesis); ``fixed`` (log_mel only) scales all
    clips alike and so keeps loudness, which carries emotion if recordings are level-matched."""
    skip_silence: bool = False
    """Drop leading audio more than 40 dB below the clip's peak (RAVDESS starts with about 1 s of silence)."""


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """From video to (count, channels, size, size) frames, uniformly spaced in time."""

    size: int = 48
    count: int = 1
    channels: Literal[1, 3] = 1
