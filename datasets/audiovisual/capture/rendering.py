"""Public clips as a device would have recorded them, fitted to its capture card."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture.render_pictures import PictureRendering, fit_pictures
from fedstill.datasets.audiovisual.capture.render_sound import SoundRendering, fit_sound
from fedstill.datasets.audiovisual.capture_card import GREYS, RINGS, SOUND, CaptureCard, card_of
from fedstill.datasets.audiovisual.store import ClipStore

LEAST_SPREAD = np.concatenate([np.full(SOUND.stop, 1.0), np.full(GREYS, 4.0), np.full(RINGS, 0.5)])
"""Decibels and grey values by which speakers differ at least, whatever few of them say."""
NATURAL = 1.5
"""Standard deviations between public speakers that are not taken for another way of recording."""
FEWEST_SPEAKERS = 3
SAMPLE = 48
"""Public clips on which a rendering is fitted."""


@dataclass(frozen=True)
class Rendering:
    """What is done to public clips; None: that part stays as it is."""

    sound: SoundRendering | None
    pictures: PictureRendering | None

    def render_sound(
        self, waveform: npt.NDArray[np.float32], rng: np.random.Generator, jitter: float = 1.0
    ) -> npt.NDArray[np.float32]:
        """float32 (samples,), not yet clipped to [-1, 1]."""
        return waveform if self.sound is None else self.sound(waveform, rng, jitter)

    def render_pictures(
        self, frames: npt.NDArray[np.uint8], rng: np.random.Generator, jitter: float = 1.0
    ) -> npt.NDArray[np.uint8]:
        """uint8 (count, channels, size, size)."""
        return frames if self.pictures is None else self.pictures(frames, rng, jitter)


def beyond_people(card: CaptureCard, store: ClipStore) -> CaptureCard:
    """The card, drawn to that of the public clips by as much as public speakers differ among themselves.

    People, and what they say and show, differ in the values of a card, too. Only what goes beyond that is the device's
    way of recording. Each value's difference is shrunk as James and Stein do, to nothing within the natural spread.
    """
    names = np.array(store.speakers)
    if store.profiles is None or len(set(store.speakers)) < FEWEST_SPEAKERS:
        return card
    own = np.stack([card_of(store.profiles[names == one]).values for one in np.unique(names)])
    usual = own.mean(axis=0)
    spread = np.maximum(own.std(axis=0, ddof=1), LEAST_SPREAD)
    difference = card.values - usual
    share = np.square(NATURAL * spread) / np.maximum(np.square(difference), 1e-9)
    return replace(card, values=(usual + difference * np.clip(1 - share, 0, 1)).astype(np.float32))


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
    heard = [kept.waveform(one) for one in sample] if kept is not None and card.has_sound else []
    heard = [one for one in heard if len(one)]
    rate = store.audio_spec.sample_rate
    return Rendering(
        fit_sound(card, heard, rate, rng) if heard else None,
        fit_pictures(card, store.frames[sample], rng) if card.has_pictures else None,
    )
