"""The capture card: how a device's clips sound and look, whatever is said and shown in them. numpy alone.

Three profiles, each an average over clips: per mel band the noise floor and the level of sound, in decibels; quantiles
of the grey value; a radial spectrum of the pictures, in decibels, which shows sharpness and noise. A clip's own values
are the same numbers, float32 (CARD_SIZE,), kept beside the clip's tensors; a part that cannot be known is NaN.
On the wire a value is one byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Floats = npt.NDArray[np.float32]

BANDS = 64
GREYS = 16
RINGS = 25
SOUND = slice(0, 2 * BANDS)
"""Floors of all bands, then levels."""
PICTURE = slice(2 * BANDS, 2 * BANDS + GREYS + RINGS)
"""Grey quantiles from 0 to 255, then rings from coarse to fine."""
CARD_SIZE = 2 * BANDS + GREYS + RINGS
CARD_VERSION = 1
CARD_BYTES = 1 + CARD_SIZE
SMALLEST_PICTURE = 4
"""Pixels of a side."""
RING_FREQUENCIES = (np.arange(RINGS) + 0.5) / (2 * RINGS)
"""Cycles per pixel."""

WINDOW_SECONDS = 0.032
FLOOR_QUANTILE, LEVEL_QUANTILE = 0.1, 0.9
SILENCE_DB = -110.0
"""Power below this counts as this; the rounding of 16-bit sound makes -101."""
LONGEST_SECONDS = 60.0
"""An hour says no more than its first minute, and would need gigabytes."""
BANDWIDTH = 8000.0
"""Hz; a band's power is that of white noise of this bandwidth and the band's density, whatever the sample rate."""
TINY = 1e-10


@dataclass(frozen=True)
class CaptureCard:
    """The average of some clips' profiles.

    Attributes:
        values: float32 (CARD_SIZE,); sound or pictures are NaN throughout if no clip has any.
        clips: how many are behind it, >= 1.
    """

    values: Floats
    clips: int

    @property
    def has_sound(self) -> bool:
        return bool(np.isfinite(self.values[SOUND]).all())

    @property
    def has_pictures(self) -> bool:
        return bool(np.isfinite(self.values[PICTURE]).all())


def card_of(profiles: Floats, fewest: int = 1) -> CaptureCard:
    """The card of clips from their profiles, float32 (clips, CARD_SIZE); a part that some clips lack is of the others.

    Args:
        fewest: a value that fewer clips have stays unknown: it would say too much about each of them.

    Raises:
        ValueError: no clips.
    """
    if not len(profiles):
        raise ValueError("a card needs at least one clip")
    known = np.isfinite(profiles)
    sums = np.where(known, profiles, 0).sum(axis=0, dtype=np.float64)
    counts = known.sum(axis=0)
    values = np.where(counts >= fewest, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
    return CaptureCard(values, len(profiles))


def profile(
    waveform: npt.NDArray[np.floating] | None,
    sample_rate: int,
    model_rate: int,
    frames: npt.NDArray[np.uint8],
) -> Floats:
    """One clip's values, float32 (CARD_SIZE,).

    Args:
        waveform: float (samples,) as recorded; None if the clip is a ready feature matrix, which has no profile.
        sample_rate: of ``waveform``, in Hz.
        model_rate: the sample rate of the model in Hz, which sets the bands, so that they are every device's.
        frames: uint8 (count, channels, size, size) as the model sees them.
    """
    sound = np.full(2 * BANDS, np.nan, np.float32)
    if waveform is not None:
        sound = sound_profile(waveform, sample_rate, model_rate)
    return np.concatenate([sound, picture_profile(frames)]).astype(np.float32)


def beginning(waveform: npt.NDArray[np.floating], sample_rate: int) -> npt.NDArray[np.floating]:
    """The part of a recording that says how it was recorded: its first ``LONGEST_SECONDS``."""
    return waveform[: round(LONGEST_SECONDS * sample_rate)]


def sound_profile(waveform: npt.NDArray[np.floating], sample_rate: int, model_rate: int) -> Floats:
    """Noise floor and level of each mel band in decibels, float32 (2 * BANDS,): quantiles over time."""
    length = max(2, round(WINDOW_SECONDS * sample_rate))
    audio = np.clip(np.asarray(beginning(waveform, sample_rate), np.float32), -1, 1)  # as the model hears it
    if len(audio) < length:
        audio = np.pad(audio, (0, length - len(audio)))
    windows = sliding_window_view(audio - audio.mean(), length)[:: length // 2]
    spectrum = np.fft.rfft(windows * _hann(length), axis=1)
    density = (np.square(spectrum.real) + np.square(spectrum.imag)) * (
        2 * BANDWIDTH / (3 / 8 * length * sample_rate)
    )
    power = density.astype(np.float32) @ _mel_filters(sample_rate, length, model_rate).T
    ordered = np.sort(10 * np.log10(np.maximum(power, 10 ** (SILENCE_DB / 10))), axis=0)
    places = np.round(np.array([FLOOR_QUANTILE, LEVEL_QUANTILE]) * (len(ordered) - 1)).astype(np.int64)
    found: Floats = ordered[places].ravel().astype(np.float32)
    return found


def picture_profile(frames: npt.NDArray[np.uint8]) -> Floats:
    """Grey quantiles and radial spectrum in decibels of a clip's frames, float32 (GREYS + RINGS,)."""
    found: Floats = picture_profiles(frames[None])[0]
    return found


def picture_profiles(clips: npt.NDArray[np.uint8]) -> Floats:
    """``picture_profile`` of many clips at once: uint8 (clips, count, channels, size, size) -> float32 (clips, .)."""
    grey = luma(clips)
    if grey.shape[-1] < SMALLEST_PICTURE:  # has no spectrum
        return np.full((len(grey), GREYS + RINGS), np.nan, np.float32)
    ordered = np.sort(grey.reshape(len(grey), -1), axis=1)
    places = np.round((np.arange(GREYS) + 0.5) / GREYS * (ordered.shape[1] - 1)).astype(np.int64)
    return np.concatenate([ordered[:, places], radial_spectra(grey)], axis=1)


def luma(frames: npt.NDArray[np.integer] | npt.NDArray[np.floating]) -> Floats:
    """(..., channels, height, width) -> float32 (..., height, width), ITU-R 601 for three channels."""
    pictures = np.asarray(frames, np.float32)
    if pictures.shape[-3] == 1:
        return pictures[..., 0, :, :]
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    grey: Floats = np.einsum("...chw,c->...hw", pictures, weights)
    return grey


def radial_spectra(grey: Floats) -> Floats:
    """Each clip's mean power over spatial frequency in decibels: (clips, count, size, size) -> (clips, RINGS)."""
    size = grey.shape[-1]
    taper = np.outer(_hann(size), _hann(size))
    spectrum = np.fft.rfft2((grey - grey.mean(axis=(-2, -1), keepdims=True)) * taper)
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).mean(axis=1) / taper.sum()
    decibels = 10 * np.log10(power.reshape(len(grey), -1).astype(np.float32) @ _rings(size) + TINY)
    found: Floats = (decibels @ _resampling(size)).astype(np.float32)
    return found


@lru_cache(maxsize=8)
def _rings(size: int) -> Floats:
    """Which weight each value of ``rfft2`` of a size x size picture has in the mean of each radius from 1 to size // 2,
    float32 (values, radii)."""
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    radius = np.round(np.hypot(rows, columns) * size).ravel()
    twice = np.broadcast_to((columns > 0) & (columns < 0.5), (size, columns.size)).ravel()
    weights = (radius[:, None] == np.arange(1, size // 2 + 1)) * np.where(twice, 2.0, 1.0)[:, None]
    shares: Floats = (weights / weights.sum(axis=0)).astype(np.float32)
    return shares


@lru_cache(maxsize=8)
def _resampling(size: int) -> Floats:
    """Linear interpolation from radii 1 to size // 2 to RINGS frequencies, float32 (radii, RINGS)."""
    radii = np.arange(1, size // 2 + 1) / size
    return np.stack([np.interp(RING_FREQUENCIES, radii, row) for row in np.eye(len(radii))]).astype(
        np.float32
    )


def to_bytes(card: CaptureCard) -> npt.NDArray[np.uint8]:
    """The version, then one byte per value, uint8 (CARD_BYTES,): half decibels, grey values; 255 stands for unknown."""
    scaled = np.where(_IS_GREY, card.values, (card.values - _LOWEST) * 2)
    values = np.where(np.isfinite(scaled), np.clip(np.round(scaled), 0, MOST_BYTE), UNKNOWN_BYTE)
    return np.concatenate([[CARD_VERSION], values]).astype(np.uint8)


def from_bytes(data: npt.NDArray[np.uint8], clips: int) -> CaptureCard:
    """The inverse of ``to_bytes``, to within half a step; ``data`` is of this version."""
    found = data[1:]
    values = np.where(_IS_GREY, found, found / 2 + _LOWEST)
    return CaptureCard(np.where(found == UNKNOWN_BYTE, np.nan, values).astype(np.float32), clips)


MOST_BYTE, UNKNOWN_BYTE = 254, 255
_IS_GREY = np.zeros(CARD_SIZE, bool)
_IS_GREY[2 * BANDS : 2 * BANDS + GREYS] = True
_LOWEST = np.full(CARD_SIZE, SILENCE_DB, np.float32)
_LOWEST[2 * BANDS + GREYS :] = -30.0


@lru_cache(maxsize=8)
def _hann(length: int) -> Floats:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


@lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, length: int, model_rate: int) -> Floats:
    """Triangles of unit sum, equally spaced in mel, (BANDS, length // 2 + 1); without weight above the sound's rate."""
    bins = np.fft.rfftfreq(length, 1 / sample_rate)
    points = mel_points(model_rate)
    rise = (bins - points[:-2, None]) / np.diff(points)[:-1, None]
    fall = (points[2:, None] - bins) / np.diff(points)[1:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    away = np.abs(bins - points[1:-1, None])
    nearest = (away == away.min(axis=1, keepdims=True)) & (points[1:-1, None] < sample_rate / 2)
    filters = np.where(filters.sum(axis=1, keepdims=True) > 0, filters, nearest)  # a band narrower than a bin
    scaled: Floats = (filters / np.maximum(filters.sum(axis=1, keepdims=True), TINY)).astype(np.float32)
    return scaled


def mel_points(model_rate: int) -> npt.NDArray[np.float64]:
    """Edges and centres of the bands in Hz, (BANDS + 2,): band b is centred at point b + 1."""
    top = 2595 * np.log10(1 + model_rate / 2 / 700)
    return np.asarray(700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1))
