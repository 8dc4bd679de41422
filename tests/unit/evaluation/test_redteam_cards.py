"""Guards the attacks on capture cards: they find what is in a card, and nothing in noise or in a card not sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_redteam import DRAWS, made_view

from fedstill.cloud_server.distillation.settings import PrototypeSettings
from fedstill.datasets.audiovisual.capture_card import CARD_SIZE
from fedstill.evaluation.redteam import card_attack, intervals
from fedstill.evaluation.redteam.card_attack import CardResults, attack_cards
from fedstill.evaluation.redteam.card_forms import card_forms
from fedstill.evaluation.redteam.card_report import card_reading, card_table, short_card_table
from fedstill.evaluation.redteam.releases import devices
from fedstill.evaluation.redteam.stage import Stage, View

KEYS = ["card_exact", "card_dp_8", "card_dp_4", "card_dp_1"]
CLASSES = 4


def recorded(seed: int, speakers: int, told: bool, clips: int = 96) -> View:
    """Clips whose cards hold speaker, sex and class, if ``told``; else noise."""
    view, rng = made_view(seed, speakers, clips), np.random.default_rng(seed)
    sex = view.speaker % 2
    usual = np.full(CARD_SIZE, -45.0)
    usual[128:144] = np.linspace(10, 240, 16)
    usual[144:] = 38
    marks = np.random.default_rng(7).normal(0, 6, (CLASSES, 64))
    own = rng.normal(0, 8, (speakers, 64))
    profiles = usual + rng.normal(0, 2, (len(view), CARD_SIZE))
    if told:
        profiles[:, 64:128] += own[view.speaker] + marks[view.label]
        profiles[:, :64] += 12.0 * sex[:, None]
    return replace(view, profiles=profiles.astype(np.float32), sex=sex)


def stage_of(attacker: View, victims: View) -> Stage:
    return Stage(
        name="made", dataset="made up", synthetic=True, class_names=tuple("abcd"),
        prototypes=PrototypeSettings(min_size=4), seed=3, attacker=attacker, victims=victims,
        centres=np.eye(CLASSES, dtype=np.float32)[:2], correct=50, student_saw_victims=False,
    )  # fmt: skip


def attacked(stage: Stage) -> CardResults:
    shadows, targets = (
        list(devices(view, DRAWS, np.random.default_rng(seed)))
        for seed, view in enumerate((stage.attacker, stage.victims))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 60)
        return attack_cards(stage, shadows, targets, DRAWS)


@pytest.fixture(scope="module")
def stage() -> Stage:
    return stage_of(recorded(1, 8, True), recorded(2, 4, True))


@pytest.fixture(scope="module")
def found(stage: Stage) -> CardResults:
    return attacked(stage)


def outcome(found: CardResults, key: str) -> Any:
    return next(one for one in found.outcomes if one.key == key)


def test_an_exact_card_tells_what_is_in_it(found: CardResults) -> None:
    assert [one.key for one in found.outcomes] == KEYS
    assert (found.speaker_chance, found.class_chance, found.sex_chance) == (0.25, 0.5, 0.5)
    exact = outcome(found, "card_exact")
    assert exact.sent == 1
    assert exact.speaker.value == exact.linked.value == exact.sex.value == 1
    assert exact.classes.low > 0.7


def test_noise_hides_more_the_less_epsilon_there_is(found: CardResults) -> None:
    """The devices have 48 clips: enough at epsilon 8, too few for any card at 1, and then every attack is a guess."""
    assert outcome(found, "card_dp_8").sent == 1
    assert outcome(found, "card_dp_8").classes.value < outcome(found, "card_exact").classes.value
    silent = outcome(found, "card_dp_1")
    assert silent.sent == 0
    assert (silent.speaker.value, silent.linked.value) == (0.25, 0.25)
    assert (silent.classes.value, silent.sex.value) == (0.5, 0.5)


def test_in_noise_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over four games with 24 devices each, no attack is better than a guess by more than three standard errors."""
    monkeypatch.setattr(card_attack, "card_forms", lambda stage: card_forms(stage)[:1])
    games = [
        attacked(stage_of(recorded(one, 8, False, clips=32), recorded(10 + one, 8, False, clips=32)))
        for one in range(4)
    ]
    (exact,) = zip(*(game.outcomes for game in games), strict=True)
    for name, guess, trials in (("speaker", 1 / 8, 96), ("linked", 1 / 8, 96), ("sex", 1 / 2, 32)):
        found = np.mean([getattr(one, name).value for one in exact])
        assert abs(found - guess) < 3 * (guess * (1 - guess) / trials) ** 0.5, name
    assert abs(np.mean([one.classes.value for one in exact]) - 0.5) < 0.05


def test_the_same_seed_finds_the_same(stage: Stage, found: CardResults) -> None:
    assert attacked(stage) == found


def test_what_cannot_be_tried_is_said(stage: Stage) -> None:
    quiet = [replace(view, sex=None) for view in (stage.attacker, stage.victims)]
    untold = attacked(stage_of(*quiet))
    assert untold.sex_chance is None
    assert all(one.sex is None for one in untold.outcomes)
    assert any("Not tried: sex: the clips do not say it" in text for text in card_reading(untold))
    women = replace(stage.victims, sex=np.ones(len(stage.victims), np.int64))
    assert "are all of one" in attacked(stage_of(stage.attacker, women)).skipped[0]
    old = attacked(stage_of(replace(stage.attacker, profiles=None), stage.victims))
    assert old.outcomes == ()
    assert "before there were capture cards" in card_reading(old)[0]


def test_the_table_and_the_sentences_say_what_the_numbers_say(found: CardResults) -> None:
    heads, rows = card_table(found)
    assert all(len(row) == len(heads) for row in rows)
    assert rows[0] == ["no information", "", "25.0 %", "25.0 %", "50.0 %", "50.0 %"]
    assert [row[0] for row in rows[1:]] == [one.title for one in found.outcomes]
    assert [row[0] for row in short_card_table(found)[1]] == [row[0] for row in rows]
    exact, *_, silent = card_reading(found)
    assert "leaks speaker (100.0 %, no information 25.0 %), two cards linked" in exact
    assert "tells nothing" in silent
