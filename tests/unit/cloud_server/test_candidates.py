"""The choice between students: a surely better candidate is taken, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from fedstill.cloud_server.distillation.candidates import (
    Estimate,
    best_of,
    bias_of,
    candidates_for,
    class_weights,
    estimated,
    expected_accuracy,
    keeps_promise,
    right,
)
from fedstill.cloud_server.distillation.class_mix import ClassMix, unknown_mix

PRIOR = np.full(4, 0.25)
HALF = ClassMix(True, "", (0.5, 0.5, 0.0, 0.0), (True, True, False, False), (0.0,) * 4)
ALL = ClassMix(True, "", (0.7, 0.1, 0.1, 0.1), (True,) * 4, (0.0,) * 4)
NONE = unknown_mix(PRIOR, "nothing is known")


@pytest.mark.parametrize(
    ("rendered", "mix", "names"),
    [
        (False, NONE, []),
        (True, NONE, ["rendered"]),
        (False, ALL, ["generic+prior"]),
        (False, HALF, ["generic+prior", "selected+prior"]),
        (
            True,
            HALF,
            ["generic+prior", "rendered", "rendered+prior", "selected+prior", "rendered+selected+prior"],
        ),
    ],
)
def test_candidates_follow_from_what_is_known(rendered: bool, mix: ClassMix, names: list[str]) -> None:
    assert [one.name for one in candidates_for(rendered, mix)] == names


def test_prototypes_come_into_question_where_the_classes_are_others() -> None:
    def names(rendered: bool, mix: ClassMix) -> set[str]:
        without, found = candidates_for(rendered, mix), candidates_for(rendered, mix, prototypes=True)
        return {one.name for one in found} - {one.name for one in without}

    assert names(True, NONE) == names(True, ALL) == set()
    assert names(False, HALF) == {"similar", "similar+prior"}
    assert names(True, HALF) == {"rendered+similar", "rendered+similar+prior"}


def test_classes_count_by_their_shares_on_the_device() -> None:
    labels = np.array([0, 0, 0, 1, 3])
    weights = class_weights(labels, (0.5, 0.5, 0.0, 0.0))
    assert np.allclose(weights, [1 / 6, 1 / 6, 1 / 6, 1 / 2, 0])
    assert class_weights(np.array([3]), (1.0, 0.0, 0.0, 0.0)).tolist() == [0.0]


def test_the_error_counts_recordings() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(4), 200)
    gains = rng.choice([-1.0, 0.0, 1.0], 800)
    alone = estimated("a", gains, labels, np.arange(800), PRIOR)
    fourfold = estimated("a", np.repeat(gains, 4), np.repeat(labels, 4), np.repeat(np.arange(800), 4), PRIOR)
    assert fourfold.gain == pytest.approx(alone.gain)
    assert fourfold.error == pytest.approx(alone.error)
    assert alone.error == pytest.approx(gains.std() / np.sqrt(800), rel=0.05)


def test_only_a_sure_gain_is_taken() -> None:
    sure, unsure, tiny = (
        Estimate("sure", 0.05, 0.02),
        Estimate("unsure", 0.06, 0.05),
        Estimate("tiny", 0.004, 0.0),
    )
    assert best_of([tiny, sure]) is sure
    assert best_of([unsure]) is None
    assert best_of([unsure, sure]) is sure
    assert best_of([tiny]) is None
    assert best_of([]) is None
    assert best_of([tiny, unsure], tested=False) is unsure
    assert best_of([Estimate("worse", -0.1, 0.01)]) is None


def test_no_candidate_wins_by_chance_alone() -> None:
    rng = np.random.default_rng(1)
    labels, taken, gain = np.tile(np.arange(4), 100), 0, []
    for _ in range(300):
        estimate = estimated("same", rng.choice([-1.0, 0, 0, 0, 1], 400), labels, np.arange(400), PRIOR)
        taken += best_of([estimate]) is not None
        gain.append(estimate.gain)
    assert taken < 0.06 * 300  # two standard errors: 2.3 %
    assert abs(np.mean(gain)) < 0.01


def test_a_bias_follows_the_mix_and_the_temperature() -> None:
    bias = bias_of(HALF, PRIOR, 2.0)
    assert bias[0] == pytest.approx(2 * np.log(2))
    assert bias[2] < -5
    assert np.isfinite(bias).all()
    assert not bias_of(NONE, PRIOR, 2.0).any()
    assert right(np.zeros((2, 4)), bias, np.array([0, 2])).tolist() == [1.0, 0.0]


def test_the_interval_holds_another_speaker() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        able = rng.normal(0.6, 0.08, 13).clip(0, 1)
        speakers, labels = np.repeat(np.arange(12), 80), np.tile(np.arange(4), 240)
        correct = (rng.uniform(size=960) < able[speakers]).astype(float)
        expected, low, high = expected_accuracy(correct, labels, speakers, PRIOR, 0.0, 0.0)
        assert low <= expected <= high
        inside += low <= able[12] <= high
    assert inside > 0.85 * 200


@pytest.mark.parametrize(
    ("promised", "found", "left", "kept"),
    [
        (0.2, 0.2, 1.0, True),
        (0.2, 0.1, 1.0, True),
        (0.2, 0.05, 1.0, False),
        (0.2, 0.05, 0.5, True),
        (0.2, 0.03, 0.5, False),
        (0.2, 0.05, 3.0, False),
        (0.2, -0.1, 0.0, False),
        (-0.05, -0.05, 1.0, True),
        (-0.05, -0.05, 0.0, True),
        (-0.05, -0.11, 1.0, True),
        (-0.05, -0.13, 1.0, False),
    ],
)
def test_a_student_that_is_no_surer_than_before_is_doubted(
    promised: float, found: float, left: float, kept: bool
) -> None:
    assert keeps_promise(promised, found, left) is kept


def test_what_is_expected_follows_the_confidence_on_the_device() -> None:
    labels, speakers = np.tile(np.arange(4), 100), np.repeat(np.arange(4), 100)
    correct = (np.arange(400) % 5 < 4).astype(float)  # 80 %

    def expected(gain: float, surer: float) -> float:
        return expected_accuracy(correct, labels, speakers, PRIOR, gain, 0.01, surer)[0]

    assert expected(0.0, 0.0) == pytest.approx(0.8, abs=0.01)
    assert expected(0.1, 0.0) == pytest.approx(0.9, abs=0.01)
    assert expected(0.0, -0.2) == pytest.approx(0.6, abs=0.01)
    assert expected(0.1, 0.1) == pytest.approx(0.95, abs=0.01), "half of the errors are mended"
    assert expected(0.1, 0.3) == 1.0
