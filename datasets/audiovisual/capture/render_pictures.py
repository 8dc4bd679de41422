"""Pictures as another device would have taken them: tone, sharpness and noise, as its capture card says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from fedstill.datasets.audiovisual.capture_card import (
    GREYS,
    PICTURE,
    CaptureCard,
    picture_profiles,
)
from fedstill.datasets.audiovisual.capture_units import GREY_UNIT, RING_UNIT

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Pictures = npt.NDArray[np.uint8]

STEPS = 2
BLURS = np.array([0, 0.5, 0.75, 1, 1.4, 2, 3, 4.5]) / 48
"""Standard deviations that are tried, in picture sides."""
NOISES = np.array([0, 4, 8, 12, 18, 27, 40])
"""Standard deviations that are tried, in grey values."""
LEAST_BLUR, LEAST_NOISE = 0.15, 0.3
"""In pixels and grey values: less is not worth its time."""
LEAN = 0.02
"""What a pixel of blur, or 8 grey values of noise, must improve the distance."""
GAMMA_JITTER, SCALE_JITTER = 0.07, 0.15
"""Standard deviations of the logarithms of gamma, and of blur and noise."""


@dataclass(frozen=True)
class PictureRendering:
    """What turns public pictures into a device's: optics first, then tone, then noise.

    Attributes:
        blur: standard deviation in pixels.
        tone: float32 (256,), the new grey of each grey value.
        noise: standard deviation in grey values.
    """

    blur: float
    tone: Floats
    noise: float

    def __call__(self, frames: Pictures, rng: np.random.Generator, jitter: float = 1.0) -> Pictures:
        """One clip's frames, uint8 (count, channels, size, size), as the device would have taken them."""
        drawn = jitter * rng.standard_normal(3)
        tone = 255 * (self.tone / 255) ** np.exp(GAMMA_JITTER * drawn[0])
        blur, noise = np.array([self.blur, self.noise]) * np.exp(SCALE_JITTER * drawn[1:])
        pictures = tone.astype(np.float32)[blurred(frames, float(blur))]
        if noise > LEAST_NOISE:
            pictures += np.float32(noise) * rng.standard_normal(pictures.shape, dtype=np.float32)
        return _rounded(pictures)


def fit_pictures(card: CaptureCard, sample: Pictures, rng: np.random.Generator) -> PictureRendering:
    """The rendering after which the sample, uint8 (clips, count, channels, size, size), looks most as the card says.

    Every blur and noise is tried, each with the tone curve that it needs.
    """
    wanted = card.values[PICTURE].astype(np.float64)
    grain = rng.standard_normal(sample.shape, dtype=np.float32)
    best, least = PictureRendering(0.0, np.arange(256, dtype=np.float32), 0.0), np.inf
    for blur in BLURS * sample.shape[-1]:
        optics = blurred(sample, blur)
        greys = looks(optics)[:GREYS]
        for noise in NOISES:
            tone, found = _tone_for(optics, greys, wanted[:GREYS], np.float32(noise) * grain)
            distance = picture_distance(found, wanted) + LEAN * (blur + noise / 8)
            if distance < least:
                best, least = PictureRendering(float(blur), tone, float(noise)), distance
    return best


def _tone_for(optics: Pictures, greys: Doubles, wanted: Doubles, grain: Floats) -> tuple[Floats, Doubles]:
    """The tone curve between optics and grain that leads to the wanted greys, and how the clips look then."""
    aim = wanted
    for _ in range(STEPS):
        tone = _tone(greys, aim)
        found = looks(_rounded(tone[optics] + grain))
        aim = np.clip(np.maximum.accumulate(aim + (wanted - found[:GREYS]) / 2), 0, 255)
    return tone, found


def picture_distance(one: Doubles, other: Doubles) -> float:
    """Between the picture parts of two cards: mean square, in units of what is just visible."""
    difference = np.asarray(one, np.float64) - other
    return float(
        np.square(difference[:GREYS] / GREY_UNIT).mean() + np.square(difference[GREYS:] / RING_UNIT).mean()
    )


def looks(pictures: Pictures) -> Doubles:
    """The picture part of these clips' card, (GREYS + RINGS,)."""
    means: Doubles = picture_profiles(pictures).mean(axis=0, dtype=np.float64)
    return means


def blurred(frames: Pictures, blur: float) -> Pictures:
    """The pictures after a Gaussian blur of this standard deviation in pixels."""
    if blur < LEAST_BLUR:
        return frames
    sigma = (0.0,) * (frames.ndim - 2) + (blur, blur)
    return _rounded(gaussian_filter(frames.astype(np.float32), sigma, truncate=3.0))


def _rounded(pictures: Floats) -> Pictures:
    rounded: Pictures = np.clip(pictures + 0.5, 0, 255).astype(np.uint8)
    return rounded


def _tone(greys: Doubles, aim: Doubles) -> Floats:
    """The rising curve through the points (grey, aim); beyond them it goes half of the way back to the diagonal."""
    ends = [(aim[place] - greys[place]) / 2 for place in (0, -1)]
    known, index = np.unique(np.round(greys), return_inverse=True)
    values = np.bincount(index, aim) / np.bincount(index)
    inner = (known > 0) & (known < 255)
    start, stop = (
        values[known == end].mean() if (known == end).any() else end + move
        for end, move in zip((0, 255), ends, strict=True)
    )
    curve = np.interp(np.arange(256), [0, *known[inner], 255], [start, *values[inner], stop])
    return np.clip(np.maximum.accumulate(curve), 0, 255).astype(np.float32)
