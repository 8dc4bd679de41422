"""How differently two devices record, from their capture cards.

A card tells of its owner's voice and face, too. Public speakers show in which directions people differ; there, a
difference of two cards counts less.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture_card import CARD_SIZE, PICTURE, SOUND, CaptureCard, card_of
from fedstill.datasets.audiovisual.capture_units import in_units
from fedstill.datasets.audiovisual.store import ClipStore

Doubles = npt.NDArray[np.float64]

PEOPLE = 0.1
"""Weight of the covariance between people, in those units, beside 1 in every direction."""


class CardSpace:
    """Where cards lie; the distance of two places is that of the cards.

    Without people it is a root mean square: of sound over all bands in units of ``SOUND_UNIT``, of pictures over grey
    values in units of 8 and over the spectrum in units of 1.5 dB. 1 is just noticed.

    Args:
        people: float (people, CARD_SIZE), how each of some people sounds and looks, recorded alike; none: (0, .).
    """

    def __init__(self, people: npt.NDArray[np.floating]) -> None:
        known = people[np.isfinite(people).all(axis=1)]
        self._shrink = [(part, _shrink(in_units(known)[:, part])) for part in (SOUND, PICTURE)]

    def place(self, card: CaptureCard) -> Doubles:
        """float64 (CARD_SIZE,); a part that the card does not know is NaN."""
        place = in_units(card.values)
        for part, shrink in self._shrink:
            place[part] = place[part] @ shrink
        return place


def space_of(store: ClipStore) -> CardSpace:
    """The space in which the speakers of a store are people."""
    profiles = store.profiles
    if profiles is None:
        return CardSpace(np.empty((0, CARD_SIZE)))
    speakers = np.array(store.speakers)
    return CardSpace(np.stack([card_of(profiles[speakers == one]).values for one in np.unique(speakers)]))


def distance(one: Doubles, other: Doubles) -> float:
    """Of two places: in sound or in pictures, whichever is larger; infinite if only one card knows a part."""
    return max(_of_part(one[part], other[part]) for part in (SOUND, PICTURE))


def _of_part(one: Doubles, other: Doubles) -> float:
    known = np.isfinite(one).all(), np.isfinite(other).all()
    if not any(known):
        return 0.0
    return float(np.linalg.norm(one - other)) if all(known) else float("inf")


def _shrink(people: Doubles) -> Doubles:
    """The symmetric matrix that makes directions shorter in which people differ."""
    size = people.shape[1]
    if len(people) < 2:
        return np.eye(size)
    values, vectors = np.linalg.eigh(size * np.cov(people.T))
    return np.asarray((vectors / np.sqrt(1 + PEOPLE * np.maximum(values, 0))) @ vectors.T)
