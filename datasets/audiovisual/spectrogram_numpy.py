"""From a waveform to the input matrix of an audio encoder, with numpy alone, for a device without torch.

Equal to ``spectrogram.py`` within float rounding; that file describes the representations. A golden test compares the
two. Training keeps torch's version, so that published results stay what they are.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

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

ZERO_CROSSINGS = 6
ROLL_OFF = 0.99
"""Of the resampling filter: its half width, and the part of the Nyquist band that it keeps (torchaudio's defaults)."""

Matrix = npt.NDArray[np.float32]


def audio_features(waveform: npt.NDArray[np.floating], sample_rate: int, spec: AudioSpec) -> Matrix:
    """One clip as float32 ``feature_shape(spec)`` = (bins, steps); silence is all zeros.

    Raises:
        DataError: like ``waveform.fit_length``.
    """
    shape = feature_shape(spec)
    audio = fit_length(waveform, sample_rate, spec, resample)
    if is_silent(waveform):
        return np.zeros(shape, dtype=np.float32)
    return _log_spectrogram(audio, spec) if spec.representation == "spectrogram" else _log_mel(audio, spec)


def resample(waveform: Waveform, source_rate: int, target_rate: int) -> Waveform:
    """Band-limited interpolation with a Hann-windowed sinc, float32 (samples,) -> (ceil(samples * ratio),).

    Source: J. O. Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/.
    """
    common = math.gcd(source_rate, target_rate)
    source, target = source_rate // common, target_rate // common
    filters, reach = _resampling_filters(source, target)
    padded = np.pad(waveform, (reach, reach + source))
    blocks = sliding_window_view(padded, filters.shape[1])[
        ::source
    ]  # (blocks, taps), ``target`` samples each
    length = -(-len(waveform) * target // source)
    return (blocks @ filters.T).reshape(-1)[:length]


@lru_cache(maxsize=8)
def _resampling_filters(source: int, target: int) -> tuple[Matrix, int]:
    """One filter per output phase, float32 (target, taps), and how many samples each reaches back."""
    cutoff = ROLL_OFF * min(source, target)
    reach = math.ceil(ZERO_CROSSINGS * source / cutoff)
    # single precision on purpose: the lags are then rounded as torchaudio rounds them
    taps = np.arange(-reach, reach + source, dtype=np.float32) / np.float32(source)
    phases = np.arange(target, dtype=np.float32) / np.float32(target)
    lag = np.clip((taps[None, :] - phases[:, None]) * np.float32(cutoff), -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.square(np.cos(np.pi * lag / (2 * ZERO_CROSSINGS)))
    return (np.sinc(lag) * window * cutoff / source).astype(np.float32), reach


def _log_spectrogram(audio: Waveform, spec: AudioSpec) -> Matrix:
    window = _tapered(THESIS_WINDOW, 0.25)
    windows = sliding_window_view(audio, THESIS_WINDOW)[::THESIS_HOP]  # (steps, 512)
    windows = windows - windows.mean(axis=1, keepdims=True)
    power = _power(windows, window) * (2 / (spec.sample_rate * np.square(window).sum()))
    power[:, [0, -1]] /= 2  # only the bins between DC and Nyquist have a mirror image to add
    return np.ascontiguousarray(_z_score(np.log(power + THESIS_FLOOR)).T)


def _log_mel(audio: Waveform, spec: AudioSpec) -> Matrix:
    centred = np.pad(audio - audio.mean(), spec.n_fft // 2, mode="reflect")
    windows = sliding_window_view(centred, spec.n_fft)[:: spec.hop]
    power = _power(windows, _tapered(spec.n_fft, 1.0))
    log_mel = np.log(_mel_filters(spec) @ power.T + MEL_FLOOR)  # (mel_bins, steps)
    if spec.normalise == "fixed":
        return ((log_mel - FIXED_MEAN) / FIXED_DEVIATION).astype(np.float32)
    return _z_score(log_mel)


@lru_cache(maxsize=8)
def _tapered(length: int, share: float) -> npt.NDArray[np.float64]:
    """The periodic Tukey window, float64 (length,), with cosine tapers over this ``share`` of it; 1 is Hann's."""
    place = np.arange(length) / length
    edge = np.minimum(place, 1 - place) * 2 / share
    window: npt.NDArray[np.float64] = 0.5 - 0.5 * np.cos(np.pi * np.minimum(edge, 1))
    return window


def _power(windows: npt.NDArray[np.floating], window: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squared magnitudes, float64 (steps, window // 2 + 1), of the windows (steps, window)."""
    spectrum = np.fft.rfft(windows * window, axis=1)
    power: npt.NDArray[np.float64] = np.square(spectrum.real) + np.square(spectrum.imag)
    return power


@lru_cache(maxsize=8)
def _mel_filters(spec: AudioSpec) -> npt.NDArray[np.float64]:
    """Triangles between points equally spaced in mel = 2595 log10(1 + f / 700), (mel_bins, n_fft // 2 + 1)."""
    nyquist = spec.sample_rate / 2
    bins = np.linspace(0, nyquist, spec.n_fft // 2 + 1)
    top = 2595 * np.log10(1 + nyquist / 700)
    points = 700 * (10 ** (np.linspace(0, top, spec.mel_bins + 2) / 2595) - 1)
    rise = (bins - points[:-2, None]) / np.diff(points)[:-1, None]
    fall = (points[2:, None] - bins) / np.diff(points)[1:, None]
    filters: npt.NDArray[np.float64] = np.maximum(0, np.minimum(rise, fall))
    return filters


def _z_score(features: npt.NDArray[np.float64]) -> Matrix:
    deviation = features.std()
    if deviation <= SMALLEST_DEVIATION:
        return np.zeros(features.shape, np.float32)
    scored: Matrix = ((features - features.mean()) / deviation).astype(np.float32)
    return scored
