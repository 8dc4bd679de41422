"""Whether a device's newer clips differ from those that its student was made for: in their classes, or as recordings.

Two figures say how much: the total variation of the mean class probabilities, and the distance of the capture cards.
Whether chance explains them is a permutation test: if nothing has changed, any other recordings could as well have been
the newer ones (Good 2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses", chapter 3). Clips of one
recording stay together, since they are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture_card import CARD_SIZE, PICTURE, SOUND
from fedstill.datasets.audiovisual.capture_units import in_units

Doubles = npt.NDArray[np.float64]

FEWEST = 8
"""Recordings on either side; fewer show nothing."""
PERMUTATIONS, AT_A_TIME = 3999, 500
LEAST_MIX, LEAST_CARD = 0.05, 1.0
"""Less is no reason for another student, however sure: 5 % of the probability, and what is just noticed."""
ENOUGH = 50
"""Permutations with as much difference: chance explains it, and no further ones are tried (Besag and Clifford 1991)."""
LEVEL = 0.02
"""How often a device that has not changed is taken for changed, over all looks at it while it has one student; well
below the 5 % that are allowed, so that what is counted in 100 of them is, too."""
LACKING = 10.0
"""Units between a clip that has a part (sound, pictures) and one that lacks it."""
TINY = 1e-9


@dataclass(frozen=True)
class Drift:
    """What a look has found.

    Attributes:
        mix: total variation between the mean class probabilities, from 0 to 1.
        card: distance of the capture cards in units that are just noticed (``capture_units.py``).
        p: the probability of so much by chance alone, of either.
        drifted: whether another student is called for.
    """

    mix: float
    card: float
    p: float
    drifted: bool


def drift_between(
    probabilities: npt.NDArray[np.floating],
    profiles: npt.NDArray[np.floating] | None,
    recordings: tuple[str, ...],
    newer: npt.NDArray[np.bool_],
    level: float,
    rng: np.random.Generator,
) -> Drift | None:
    """Compare the newer clips with the others; None if there are too few recordings of either.

    Args:
        probabilities: (clips, classes), of one student.
        profiles: (clips, CARD_SIZE), how each clip was recorded; None if nobody knows.
        recordings: of each clip. One that has an older clip counts as old.
        level: how often this look may see drift where there is none.
        rng: of the permutations.
    """
    names, recording = np.unique(np.array(recordings), return_inverse=True)
    is_new = np.bincount(recording, ~newer, len(names)) == 0
    if min(is_new.sum(), (~is_new).sum()) < FEWEST:
        return None
    rows = np.asarray(probabilities, np.float64)
    seen = _as_seen(profiles) if profiles is not None else np.zeros((len(rows), CARD_SIZE + 2))
    values = np.column_stack([np.ones(len(rows)), rows, seen])
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, recording, values)
    classes = rows.shape[1]
    mix, card = (found[0] for found in _figures(is_new[None], sums, classes))
    as_much, done = np.zeros(2), 0
    while done < PERMUTATIONS and as_much.min() < ENOUGH:
        count = min(AT_A_TIME, PERMUTATIONS - done)
        done += count
        shuffled = rng.permuted(np.tile(is_new, (count, 1)), axis=1)
        by_chance = _figures(shuffled, sums, classes)
        as_much += [(by_chance[0] >= mix - TINY).sum(), (by_chance[1] >= card - TINY).sum()]
    p_mix, p_card = (1 + as_much) / (1 + done)
    each = level / 2
    drifted = (p_mix <= each and mix >= LEAST_MIX) or (p_card <= each and card >= LEAST_CARD)
    return Drift(float(mix), float(card), float(min(1.0, 2 * min(p_mix, p_card))), bool(drifted))


def level_of(look: int) -> float:
    """Of the looks at one student's device, counted from 0: together they may err as often as ``LEVEL`` says."""
    return float(LEVEL / 2 ** (look + 1))


def _as_seen(profiles: npt.NDArray[np.floating]) -> Doubles:
    """Profiles in units, (clips, CARD_SIZE + 2): what a clip lacks has the others' mean, and the last two values say
    that it lacks it."""
    placed = in_units(profiles)
    known = np.isfinite(placed)
    mean = np.where(known, placed, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    has = np.stack([known[:, part].all(axis=1) for part in (SOUND, PICTURE)], axis=1)
    return np.column_stack([np.where(known, placed, mean), LACKING * has])


def _figures(is_new: npt.NDArray[np.bool_], sums: Doubles, classes: int) -> tuple[Doubles, Doubles]:
    """Mix and card of each of some assignments (n, recordings), from each recording's count and sums of values."""
    newer = is_new.astype(np.float64) @ sums
    older = sums.sum(axis=0) - newer
    difference = newer[:, 1:] / newer[:, :1] - older[:, 1:] / older[:, :1]
    seen = difference[:, classes:]
    parts = [
        np.hypot(np.linalg.norm(seen[:, part], axis=1), seen[:, CARD_SIZE + number])
        for number, part in enumerate((SOUND, PICTURE))
    ]
    return np.abs(difference[:, :classes]).sum(axis=1) / 2, np.maximum(*parts)
