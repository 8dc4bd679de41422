"""Public clips as a device would have recorded them, fitted to its capture card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture.render_pictures import PictureRendering, fit_pictures
from fedstill.datasets.audiovisual.capture.render_sound import SoundRendering, fit_sound
from fedstill.datasets.audiovisual.capture_card import BANDS, SOUND, CaptureCard
from fedstill.datasets.audiovisual.store import ClipStore

Floats = npt.NDArray[np.float32]

AUDIBLE_DB = -80.0
"""The loudest bands of a clip with anything to hear."""
MOST_OFFSET = 20.0
"""Decibels."""
LOUDEST = 16
"""Bands that say how loud a speaker is."""
SAMPLE = 48
"""Public clips on which a rendering is fitted."""


@dataclass(frozen=True)
class Rendering:
    """What is done to public clips; None: that part stays as it is.

    Attributes:
        factors: float32 (clips,), of each public clip's waveform: with them, all speakers are equally loud on average.
            A device's microphone is as far from its owner, whoever that is.
    """

    sound: SoundRendering | None
    pictures: PictureRendering | None
    factors: Floats

    def render_sound(
        self, waveform: Floats, position: int, rng: np.random.Generator, jitter: float = 1.0
    ) -> Floats:
        """See ``views.Renderer``."""
        return waveform if self.sound is None else self.sound(self.factors[position] * waveform, rng, jitter)

    def render_pictures(
        self, frames: npt.NDArray[np.uint8], rng: np.random.Generator, jitter: float = 1.0
    ) -> npt.NDArray[np.uint8]:
        """See ``views.Renderer``."""
        return frames if self.pictures is None else self.pictures(frames, rng, jitter)


def level_offsets(store: ClipStore) -> Floats:
    """By how many decibels each clip's speaker is softer than the average one, float32 (clips,); 0 if unknown.

    Silent clips do not count, and nobody is moved by more than ``MOST_OFFSET``: a muted microphone is no soft voice.
    """
    if store.profiles is None:
        return np.zeros(len(store), np.float32)
    _, speaker = np.unique(np.array(store.speakers), return_inverse=True)
    loud = np.sort(store.profiles[:, SOUND].reshape(-1, 2, BANDS)[:, 1], axis=1)[:, -LOUDEST:].mean(axis=1)
    heard = np.isfinite(loud) & (loud > AUDIBLE_DB)
    clips = np.bincount(speaker[heard], minlength=speaker.max() + 1)
    sums = np.bincount(speaker[heard], loud[heard], minlength=len(clips))
    known = clips > 0
    if not known.any():
        return np.zeros(len(store), np.float32)
    own = np.divide(sums, clips, out=np.full(len(clips), np.nan), where=known)
    offsets = np.where(known, np.median(own[known]) - own, 0.0)
    return np.asarray(np.clip(offsets, -MOST_OFFSET, MOST_OFFSET)[speaker], np.float32)


def fit_rendering(
    card: CaptureCard, store: ClipStore, shares: npt.NDArray[np.floating], seed: int
) -> Rendering:
    """The rendering after which public clips are, on average, as the card says.

    A card tells of what is said and shown, too. So it is compared with public clips of the device's classes.

    Args:
        card: the device's.
        store: public clips; their sound is rendered only if it was kept.
        shares: of the classes on the device, float (classes,), as far as they are known.
        seed: of the clips that are tried.
    """
    rng = np.random.default_rng(seed)
    chances = np.asarray(shares, np.float64)[store.labels] / np.bincount(store.labels)[store.labels]
    size = min(SAMPLE, int((chances > 0).sum()))
    sample = np.sort(rng.choice(len(store), size, replace=False, p=chances / chances.sum()))
    kept = store.sound
    factors = (10 ** (level_offsets(store) / 20)).astype(np.float32)
    heard = [factors[one] * kept.waveform(one) for one in sample] if kept and card.has_sound else []
    heard = [one for one in heard if len(one)]
    rate = store.audio_spec.sample_rate
    return Rendering(
        fit_sound(card, heard, rate, rng) if heard else None,
        fit_pictures(card, store.frames[sample], rng) if card.has_pictures else None,
        factors,
    )
