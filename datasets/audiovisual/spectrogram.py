"""From a waveform to the input matrix of an audio encoder, with torch, for the cloud and the simulation.

Two representations exist: the log power spectrogram of the thesis' line of work, rebuilt here so that it
equals ``scipy.signal.spectrogram(fs=16000, nperseg=512, noverlap=353)`` and still exports to ONNX (torchaudio
does not detrend each window), and a log-mel variant, several times smaller, for small devices. Every clip is
z-scored on its own, so that microphone gain and distance count little, unless the spec asks for ``fixed``.
``spectrogram_numpy.py`` is the same without torch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torchaudio.functional
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from fedstill.datasets.audiovisual.specs import AudioSpec
from fedstill.datasets.audiovisual.waveform import (
    FIXED_DEVIATION,
    FIXED_MEAN,
    MEL_FLOOR,
    SMALLEST_DEVIATION,
    THESIS_FLOOR,
    THESIS_HOP,
    THESIS_WINDOW,
    Waveform,
    feature_shape,
    fit_length,
    is_silent,
)


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
        from scipy.signal import get_window  # takes a second, and the log-mel variant does without

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
        return z_score(torch.log(power + THESIS_FLOOR)).transpose(-1, -2)


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
        log_mel = torch.log(self.mel(centred) + MEL_FLOOR)
        return (log_mel - FIXED_MEAN) / FIXED_DEVIATION if self.fixed else z_score(log_mel)


def z_score(features: Tensor) -> Tensor:
    """Zero mean and unit deviation per clip of (batch, ., .); a clip without structure becomes all zeros."""
    deviation, mean = torch.std_mean(features, dim=(-2, -1), correction=0, keepdim=True)
    structured = deviation > SMALLEST_DEVIATION
    return torch.where(structured, (features - mean) / deviation.clamp_min(SMALLEST_DEVIATION), 0.0)


def audio_features(
    waveform: npt.NDArray[np.floating], sample_rate: int, spec: AudioSpec
) -> npt.NDArray[np.float32]:
    """One clip as float32 ``feature_shape(spec)`` = (bins, steps). Raises DataError like ``fit_length``.

    Silence (all samples equal) has no structure to normalise: it becomes all zeros, which is also the mean of
    every other clip, so that a model sees "no information" and never NaN.
    """
    shape = feature_shape(spec)
    audio = fit_length(waveform, sample_rate, spec, resample)
    if is_silent(waveform):
        return np.zeros(shape, dtype=np.float32)
    with torch.inference_mode():
        features: npt.NDArray[np.float32] = _transform(spec)(torch.from_numpy(audio)[None])[0].numpy()
    return features


def resample(waveform: Waveform, source_rate: int, target_rate: int) -> Waveform:
    """torchaudio's band-limited resampling of float32 (samples,)."""
    resampled: Waveform = torchaudio.functional.resample(
        torch.from_numpy(waveform), source_rate, target_rate
    ).numpy()
    return resampled


@lru_cache(maxsize=8)
def _transform(spec: AudioSpec) -> nn.Module:
    return LogSpectrogram(spec.sample_rate) if spec.representation == "spectrogram" else LogMel(spec)
