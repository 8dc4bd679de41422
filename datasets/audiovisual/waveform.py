"""Code shared by both spectrogram backends: the length, the level and the checks of a waveform; numpy alone.

The cloud computes spectrograms with torch (``spectrogram.py``), a small device with numpy
(``spectrogram_numpy.py``). Everything except the transforms is here, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.specs import AudioSpec
from fedstill.datasets.focus.speech_window import is_longer, speech_stretch

Waveform = npt.NDArray[np.float32]
Resampler = Callable[[Waveform, int, int], Waveform]
"""(float32 (samples,), its rate in Hz, target rate in Hz) -> float32 (samples,)."""
AudioTransform = Callable[[npt.NDArray[np.floating], int, AudioSpec], npt.NDArray[np.float32]]
"""(mono waveform, its rate in Hz, what the model expects) -> float32 ``feature_shape(spec)``."""

THESIS_WINDOW = 512
THESIS_HOP = 159
THESIS_FLOOR = 1e-7
MEL_FLOOR = 1e-6
SILENCE_RATIO = 0.01  # 40 dB below the peak
FIXED_MEAN, FIXED_DEVIATION = -8.0, 4.5  # of speech at a normal level in log mel power
SMALLEST_DEVIATION = 1e-4  # below it, a clip has no structure to normalise
RESAMPLING_TABLE_LIMIT = 20_000_000  # floats; the resampling filter bank grows with rate * rate / gcd^2


def feature_shape(spec: AudioSpec) -> tuple[int, int]:
    """The (bins, steps) of ``audio_features``. Raises DataError if ``seconds`` is shorter than one window.

    ``n_fft``, ``hop`` and ``mel_bins`` belong to ``log_mel``; the thesis' spectrogram fixes 512 and 159.
    """
    samples = _sample_count(spec)
    window, hop = (
        (THESIS_WINDOW, THESIS_HOP) if spec.representation == "spectrogram" else (spec.n_fft, spec.hop)
    )
    if samples < window:
        raise DataError(
            f"{spec.seconds} s of audio is shorter than one window of {window} samples: raise audio.seconds"
        )
    if spec.representation == "spectrogram":
        return window // 2 + 1, (samples - window) // hop + 1
    return spec.mel_bins, samples // hop + 1


def fit_length(
    waveform: npt.NDArray[np.floating], sample_rate: int, spec: AudioSpec, resample: Resampler
) -> Waveform:
    """Bring a mono waveform to ``spec.seconds`` at ``spec.sample_rate``.

    Resamples, optionally takes the part with most speech, optionally skips leading audio more than 40 dB below the
    peak, repeats a short clip until it is full, cuts, and clamps to [-1, 1].

    Args:
        waveform: floating (samples,) in about [-1, 1].
        sample_rate: of ``waveform``, in Hz.
        spec: of the model.
        resample: called only if the rates differ, with a copy of the samples.

    Returns:
        float32 (spec.seconds * spec.sample_rate,).

    Raises:
        DataError: not a mono waveform of floats, empty, NaN or infinite samples, an unusable sample rate, or
            ``spec.voice`` without the detector.
    """
    check_waveform(waveform, sample_rate, spec.sample_rate)
    audio = np.asarray(waveform, dtype=np.float32)
    if sample_rate != spec.sample_rate:
        audio = resample(audio.copy(), sample_rate, spec.sample_rate)
    if spec.voice and is_longer(len(audio) / spec.sample_rate, spec.seconds):
        stretch, _ = speech_stretch(audio, spec.sample_rate, spec.seconds, resample)
        audio = audio if stretch is None else stretch.of(audio, spec.sample_rate)
    if spec.skip_silence:
        loudness = np.abs(audio)
        audio = audio[np.argmax(loudness >= SILENCE_RATIO * loudness.max()) :]
    return np.clip(np.resize(audio, _sample_count(spec)), -1.0, 1.0)


def is_silent(waveform: npt.NDArray[np.floating]) -> bool:
    """All samples equal. Asked of the recorded waveform: resampling rings at the edges."""
    return bool(np.ptp(waveform) == 0)


def _sample_count(spec: AudioSpec) -> int:
    return round(spec.seconds * spec.sample_rate)


def check_waveform(waveform: npt.NDArray[np.floating], source: int, target: int) -> None:
    """Raises DataError for what ``fit_length`` cannot use at ``source`` Hz if it wants ``target`` Hz."""
    if waveform.ndim != 1:
        raise DataError(f"audio has shape {waveform.shape}: mix it down to one channel of shape (samples,)")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise DataError(f"audio samples are {waveform.dtype}: scale them to floats in [-1, 1]")
    if waveform.size == 0:
        raise DataError("audio is empty: remove the clip or record it again")
    if not np.isfinite(waveform).all():
        raise DataError("audio holds NaN or infinite samples: decode or record the clip again")
    if source == target:
        return
    if source <= 0:
        raise DataError(f"sample rate is {source} Hz: give the rate the clip was recorded at")
    if source * target // math.gcd(source, target) ** 2 > RESAMPLING_TABLE_LIMIT:
        raise DataError(
            f"cannot resample {source} Hz to {target} Hz exactly: convert the clip to {target} Hz first"
        )
