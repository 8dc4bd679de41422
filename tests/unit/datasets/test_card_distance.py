"""The distance of two capture cards: in units that are just noticed, of the part that differs more."""

from __future__ import annotations

import numpy as np
import pytest

from fedstill.datasets.audiovisual.capture.card_distance import CardSpace, distance
from fedstill.datasets.audiovisual.capture_card import BANDS, CARD_SIZE, GREYS, PICTURE, SOUND, CaptureCard

RNG = np.random.default_rng(0)
VALUES = np.concatenate([RNG.uniform(-70, -20, 2 * BANDS), RNG.uniform(40, 200, CARD_SIZE - 2 * BANDS)])


ALIKE = CardSpace(np.empty((0, CARD_SIZE)))


def card(values: np.ndarray = VALUES, **changes: float) -> CaptureCard:
    """With ``sound``, ``grey`` and ``rings`` added to its parts."""
    found = values.astype(np.float32)
    found[SOUND] += changes.get("sound", 0)
    found[PICTURE][:GREYS] += changes.get("grey", 0)
    found[PICTURE][GREYS:] += changes.get("rings", 0)
    return CaptureCard(found, 40)


def between(one: CaptureCard, other: CaptureCard, space: CardSpace = ALIKE) -> float:
    return distance(space.place(one), space.place(other))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 0.0),
        ({"sound": 2.0}, 1.0),
        ({"sound": -6.0}, 3.0),
        ({"grey": 8.0, "rings": 1.5}, 1.0),
        ({"sound": 2.0, "grey": 16.0, "rings": 3.0}, 2.0),
    ],
)
def test_units_are_those_of_the_card(changes: dict[str, float], wanted: float) -> None:
    assert between(card(), card(**changes)) == pytest.approx(wanted, abs=1e-5)
    assert between(card(**changes), card()) == pytest.approx(wanted, abs=1e-5)


def test_what_is_too_soft_to_hear_does_not_count() -> None:
    silent = np.where(np.arange(CARD_SIZE) < BANDS, -90.0, VALUES)
    softer = np.where(np.arange(CARD_SIZE) < BANDS, -110.0, VALUES)
    assert between(card(silent), card(softer)) == 0


def test_a_part_that_one_card_lacks_is_infinitely_far_and_one_that_both_lack_is_alike() -> None:
    deaf = np.where(np.arange(CARD_SIZE) < 2 * BANDS, np.nan, VALUES)
    assert between(card(deaf), card()) == np.inf
    assert between(card(deaf), card(deaf, grey=8.0, rings=1.5)) == pytest.approx(1.0, abs=1e-5)


def test_what_people_differ_by_counts_less() -> None:
    heard = np.arange(CARD_SIZE) < 2 * BANDS
    voices = np.linspace(-20, 20, 9)[:, None] * heard
    people = CardSpace(VALUES + voices)
    louder, tilted = card(sound=6.0), card(VALUES + np.linspace(-10.4, 10.4, CARD_SIZE) * heard)
    assert between(card(), louder, people) < between(card(), louder) / 3
    assert between(card(), card(grey=8.0, rings=1.5), people) == pytest.approx(1.0, abs=1e-5)
    assert between(card(), tilted, people) > between(card(), tilted) / 2
