"""Our spectrogram is scipy's, and the thesis' numbers of bins and steps come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import signal

from fedstill.datasets.audiovisual.spectrogram import LogSpectrogram

SECONDS = {3: 299, 10: 1004}


def scipy_reference(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """PMR / BMSFed ``extractWav``, line by line."""
    _, _, power = signal.spectrogram(waveform, fs=16_000, nperseg=512, noverlap=353)
    log = np.log(power + 1e-7)
    return (log - log.mean()) / log.std()


def largest_difference(waveform: npt.NDArray[np.float32]) -> float:
    ours = LogSpectrogram()(torch.from_numpy(waveform)[None])[0].numpy()
    reference = scipy_reference(waveform)
    assert ours.shape == reference.shape == (257, SECONDS[len(waveform) // 16_000])
    return float(np.abs(ours - reference).max())


@pytest.mark.parametrize("seconds", SECONDS)
def test_noise_equals_scipy(seconds: int) -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.1, seconds * 16_000).astype(np.float32)
    assert largest_difference(noise) <= 2e-5


@pytest.mark.parametrize("seconds", SECONDS)
def test_chirp_equals_scipy(seconds: int) -> None:
    time = np.arange(seconds * 16_000) / 16_000
    chirp = (0.5 * signal.chirp(time, 50.0, float(seconds), 7_000.0)).astype(np.float32)
    assert largest_difference(chirp) <= 2e-5


@pytest.mark.data
@pytest.mark.parametrize("seconds", SECONDS)
def test_speech_equals_scipy(data_dir: Path, seconds: int) -> None:
    soundfile = pytest.importorskip("soundfile")
    speech, rate = soundfile.read(data_dir / "cremad_sample/AudioWAV/1001_DFA_HAP_XX.wav", dtype="float32")
    assert rate == 16_000
    assert largest_difference(np.resize(speech, seconds * 16_000)) <= 2e-5
