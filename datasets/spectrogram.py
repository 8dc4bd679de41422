"""From a waveform to the matrix that an audio encoder sees.

Two representations exist: the log power spectrogram of the thesis' line of work, rebuilt here so that it
equals ``scipy.signal.spectrogram(fs=16000, nperseg=512, noverlap=353)`` and still exports to ONNX (torchaudio
does not detrend each window), and a log-mel variant, several times smaller, for small devices. Every clip is
z-scored on its own, so that microphone gain and distance count little, unless the spec asks for ``fixed``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import get_window
from torch import Tensor, nn
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram

from fedstill.datasets.clip import DataError
from fedstill.datasets.specs import AudioSpec

THESIS_WINDOW = 512
THESIS_HOP = 159
SILENCE_RATIO = 0.01  # 40 dB below the peak
FIXED_MEAN, FIXED_DEVIATION = -8.0, 4.5  # of speech at a normal level in log mel power
RESAMPLING_TABLE_LIMIT = 20_000_000  # floats; torchaudio's filter bank grows with rate * rate / gcd^2


class LogSpectrogram(nn.Module):
    """Log power spectral density, z-scored per clip: 48 000 samples -> 257 x 299, 160 000 -> 257 x 1004.

    Equal to scipy's defaults: periodic Tukey(0.25) window of 512 samples, hop 159, the mean of each window
    removed, one-sided density scaling. Cosine and sine tables instead of an FFT, so that ONNX can hold it.
    Source: ``data/CREMAD/video_preprocessing.py: extractWav`` of PMR / BMSFed, with log(S + 1e-7).
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, sample_rate: int = 16_000) -> None:
        super().__init__()
        window = get_window(("tukey", 0.25), THESIS_WINDOW)
        density = np.full(THESIS_WINDOW // 2 + 1, 2.0)
        density[[0, -1]] = 1.0  # only the bins between DC and Nyquist have a mirror image to add
        amplitude = np.sqrt(density / (sample_rate * np.square(window).sum()))
        angle = 2 * np.pi / THESIS_WINDOW * np.outer(np.arange(THESIS_WINDOW), np.arange(len(density)))
        table = window[:, None] * amplitude * np.exp(1j * angle)  # (512, 257)
        self.register_buffer("cosine", torch.tensor(table.real, dtype=torch.float32), persistent=False)
        self.register_buffer("sine", torch.tensor(table.imag, dtype=torch.float32), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """float32 (batch, samples), samples >= 512 -> float32 (batch, 257, (samples - 353) // 159)."""
        windows = waveform.unfold(-1, THESIS_WINDOW, THESIS_HOP)  # (batch, steps, 512)
        windows = windows - windows.mean(-1, keepdim=True)
        power = (windows @ self.cosine).square() + (windows @ self.sine).square()
        return z_score(torch.log(power + 1e-7)).transpose(-1, -2)


class LogMel(nn.Module):
    """Log mel power, normalised as the spec says: 40 000 samples -> 64 x 157 with the default ``AudioSpec``.

    The floor of 1e-6 lies just above the quantisation noise of 16-bit audio, so that digital silence and a
    quiet room look alike. A constant offset (a cheap microphone) is removed first.
    """

    def __init__(self, spec: AudioSpec) -> None:
        super().__init__()
        self.fixed = spec.normalise == "fixed"
        self.mel = MelSpectrogram(
            spec.sample_rate, n_fft=spec.n_fft, hop_length=spec.hop, n_mels=spec.mel_bins
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """float32 (batch, samples) -> float32 (batch, mel_bins, samples // hop + 1)."""
        centred = waveform - waveform.mean(-1, keepdim=True)
        log_mel = torch.log(self.mel(centred) + 1e-6)
        return (log_mel - FIXED_MEAN) / FIXED_DEVIATION if self.fixed else z_score(log_mel)


def z_score(features: Tensor) -> Tensor:
    """Zero mean and unit deviation per clip of (batch, ., .); a clip without structure becomes all zeros."""
    deviation, mean = torch.std_mean(features, dim=(-2, -1), correction=0, keepdim=True)
    return torch.where(deviation > 1e-4, (features - mean) / deviation.clamp_min(1e-4), 0.0)


def feature_shape(spec: AudioSpec) -> tuple[int, int]:
    """The (bins, steps) of ``audio_features``. Raises DataError where ``seconds`` does not hold one window.

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
    waveform: npt.NDArray[np.floating], sample_rate: int, spec: AudioSpec
) -> npt.NDArray[np.float32]:
    """Bring a mono waveform to ``spec.seconds`` at ``spec.sample_rate``.

    Resamples, optionally skips leading audio more than 40 dB below the peak, repeats a short clip until it is
    full, cuts, and clamps to [-1, 1].

    Args:
        waveform: floating (samples,) in about [-1, 1].
        sample_rate: of ``waveform``, in Hz.
        spec: what the model expects.

    Returns:
        float32 (spec.seconds * spec.sample_rate,).

    Raises:
        DataError: not a mono waveform of floats, empty, NaN or infinite samples, or an unusable sample rate.
    """
    _check(waveform)
    audio = np.asarray(waveform, dtype=np.float32)
    if sample_rate != spec.sample_rate:
        _check_rates(sample_rate, spec.sample_rate)
        audio = resample(torch.from_numpy(audio.copy()), sample_rate, spec.sample_rate).numpy()
    if spec.skip_silence:
        loudness = np.abs(audio)
        audio = audio[np.argmax(loudness >= SILENCE_RATIO * loudness.max()) :]
    return np.clip(np.resize(audio, _sample_count(spec)), -1.0, 1.0)


def audio_features(
    waveform: npt.NDArray[np.floating], sample_rate: int, spec: AudioSpec
) -> npt.NDArray[np.float32]:
    """One clip as float32 ``feature_shape(spec)`` = (bins, steps). Raises DataError like ``fit_length``.

    Silence (all samples equal) has no structure to normalise: it becomes all zeros, which is also the mean of
    every other clip, so that a model sees "no information" and never NaN.
    """
    shape = feature_shape(spec)
    audio = fit_length(waveform, sample_rate, spec)
    if np.ptp(waveform) == 0:  # asked before resampling, whose edges ring
        return np.zeros(shape, dtype=np.float32)
    with torch.inference_mode():
        features: npt.NDArray[np.float32] = _transform(spec)(torch.from_numpy(audio)[None])[0].numpy()
    return features


@lru_cache(maxsize=8)
def _transform(spec: AudioSpec) -> nn.Module:
    return LogSpectrogram(spec.sample_rate) if spec.representation == "spectrogram" else LogMel(spec)


def _sample_count(spec: AudioSpec) -> int:
    return round(spec.seconds * spec.sample_rate)


def _check(waveform: npt.NDArray[np.floating]) -> None:
    if waveform.ndim != 1:
        raise DataError(f"audio has shape {waveform.shape}: mix it down to one channel of shape (samples,)")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise DataError(f"audio samples are {waveform.dtype}: scale them to floats in [-1, 1]")
    if waveform.size == 0:
        raise DataError("audio is empty: remove the clip or record it again")
    if not np.isfinite(waveform).all():
        raise DataError("audio holds NaN or infinite samples: decode or record the clip again")


def _check_rates(source: int, target: int) -> None:
    if source <= 0:
        raise DataError(f"sample rate is {source} Hz: give the rate the clip was recorded at")
    if source * target // math.gcd(source, target) ** 2 > RESAMPLING_TABLE_LIMIT:
        raise DataError(
            f"cannot resample {source} Hz to {target} Hz exactly: convert the clip to {target} Hz first"
        )
