"""Drift is seen where classes or the microphone change, and seldom where nothing does, however often one looks."""

from __future__ import annotations

import numpy as np
import pytest

from fedstill.datasets.audiovisual.capture_card import CARD_SIZE, PICTURE, SOUND
from fedstill.edge_client.node.drift import FEWEST, LEVEL, Drift, drift_between, level_of

CLASSES = 6


class Home:
    """Recordings of one device: two clips each, of six classes, by people and rooms that differ a little."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.card = self.rng.normal(-40, 8, CARD_SIZE)
        self.shares = self.rng.dirichlet(np.full(CLASSES, 2.0))

    def record(self, recordings: int, shares: np.ndarray | None = None, louder: float = 0.0):
        """Probabilities and profiles of the clips."""
        rng = self.rng
        labels = np.repeat(rng.choice(CLASSES, recordings, p=self.shares if shares is None else shares), 2)
        logits = rng.normal(0, 1, (2 * recordings, CLASSES)) + 2 * np.eye(CLASSES)[labels]
        rows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        smooth = np.repeat(rng.normal(0, 6, (recordings, 1)), 2, axis=0)
        profiles = self.card + smooth + rng.normal(0, 4, (2 * recordings, CARD_SIZE))
        profiles[:, SOUND] += louder
        return rows.astype(np.float32), profiles.astype(np.float32)


def look(older, newer, level: float = LEVEL, seed: int = 0) -> Drift | None:
    rows, profiles = (np.concatenate(parts) for parts in zip(older, newer, strict=True))
    count = len(rows)
    is_new = np.arange(count) >= len(older[0])
    recordings = tuple(str(clip // 2) for clip in range(count))
    return drift_between(rows, profiles, recordings, is_new, level, np.random.default_rng(seed))


def test_false_triggers_of_a_device_that_has_not_changed() -> None:
    """100 resamples of the same device, each looked at when 8, 16, 32 and 64 newer recordings are there."""
    false = 0
    for seed in range(100):
        home = Home(seed)
        older, newer = home.record(60), home.record(64)
        looks = [
            look(older, tuple(part[: 2 * count] for part in newer), level_of(number), seed)
            for number, count in enumerate((8, 16, 32, 64))
        ]
        false += any(found is not None and found.drifted for found in looks)
    assert false <= 5


@pytest.mark.parametrize("seed", range(5))
def test_another_microphone_is_seen_at_once(seed: int) -> None:
    home = Home(seed)
    found = look(home.record(60), home.record(12, louder=12.0), level_of(0))
    assert found is not None
    assert found.drifted
    assert found.card > 5
    assert found.p <= level_of(0)


@pytest.mark.parametrize("seed", range(5))
def test_other_classes_are_seen(seed: int) -> None:
    home = Home(seed)
    home.shares = np.array([0.5, 0.5, 0, 0, 0, 0])
    found = look(home.record(60), home.record(16, shares=np.array([0, 0, 0.5, 0.5, 0, 0])), level_of(1))
    assert found is not None
    assert found.drifted
    assert found.mix > 0.3


def test_a_sound_that_is_gone_is_drift_and_one_that_never_was_is_not() -> None:
    home = Home(1)
    older, (rows, profiles) = home.record(40), home.record(12)
    profiles[:, SOUND] = np.nan
    found = look(older, (rows, profiles), level_of(0))
    assert found is not None
    assert found.drifted
    older[1][:, SOUND] = np.nan
    found = look(older, (rows, profiles), level_of(0))
    assert found is not None
    assert not found.drifted
    assert np.isfinite(found.card)


def test_a_sure_but_small_difference_is_no_reason() -> None:
    home = Home(2)
    older, newer = home.record(200), home.record(200)
    for part in (older, newer):
        part[1][:] = home.card
    newer[1][:, PICTURE] += 0.1
    found = look(older, newer)
    assert found is not None
    assert found.p < 0.01
    assert not found.drifted


def test_a_few_recordings_show_nothing() -> None:
    home = Home(3)
    older = home.record(60)
    assert look(older, home.record(FEWEST - 1, louder=30.0)) is None
    assert look(home.record(FEWEST - 1), home.record(60, louder=30.0)) is None


def test_a_recording_that_has_an_older_clip_is_old() -> None:
    home = Home(4)
    rows, profiles = home.record(30)
    recordings = tuple(str(clip // 2) for clip in range(60))
    is_new = np.arange(60) % 2 == 1  # the second clip of each
    assert drift_between(rows, profiles, recordings, is_new, 0.05, home.rng) is None


def test_without_profiles_classes_alone_are_compared() -> None:
    home = Home(5)
    rows, _ = home.record(60)
    recordings = tuple(map(str, range(120)))
    found = drift_between(rows, None, recordings, np.arange(120) >= 90, 0.05, home.rng)
    assert found is not None
    assert found.card == 0
