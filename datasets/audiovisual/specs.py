"""How clips become tensors: the two small specifications in every model's checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


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
    voice: bool = False
    """Of a longer clip, take the ``seconds`` with most speech instead of the first ones, and the frames of that time.
    Needs the extra ``speech``."""


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """From video to (count, channels, size, size) frames, uniformly spaced in time."""

    size: int = 48
    count: int = 1
    channels: Literal[1, 3] = 1
    crop: Literal["none", "face"] = "none"
    """``none``: the whole picture, stretched to a square. ``face``: a square around the largest face, the same in all
    frames of a clip; the middle square of a clip without a face. Needs the extra ``speech``."""

    def __post_init__(self) -> None:
        if self.crop not in ("none", "face"):
            raise ValueError(f"crop: {self.crop!r} is not one of none, face")


LATER_KEYS = ("voice", "crop")
"""Not written at their defaults: older devices, stores and checkpoints know them not, and mean the same."""


def spec_values(spec: AudioSpec | FrameSpec) -> dict[str, Any]:
    """A specification as plain values, as they are stored and sent; ``AudioSpec(**values)`` is the inverse."""
    usual = {field.name: field.default for field in fields(spec) if field.name in LATER_KEYS}
    return {key: value for key, value in asdict(spec).items() if key not in usual or value != usual[key]}
