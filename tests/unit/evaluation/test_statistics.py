"""Intervals and paired tests: golden values, brute force on tiny cases, no false alarms without effect."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from fedstill.evaluation.paired_tests import mcnemar, p_label, paired_t, sign_flip
from fedstill.evaluation.results import AccuracyRow, ClipRow
from fedstill.evaluation.statistics import (
    arm_accuracy,
    compare,
    distinct_recordings,
    pooled_accuracy,
    signed,
    wilson,
)


def rng():
    return np.random.default_rng(0)


def tally(correct, total, client=0, seed=0):
    return SimpleNamespace(client=client, seed=seed, correct=correct, total=total)


def clip_rows(ours, theirs, client=0):
    """Rows of one client: ours and theirs are (seeds, clips) arrays of 0 and 1."""
    return tuple(
        ClipRow(
            "latency_insensitive",
            client,
            seed,
            tuple(f"clip{index}" for index in range(len(a))),
            {"fedstill": "".join(map(str, a)), "all_distill": "".join(map(str, b))},
        )
        for seed, (a, b) in enumerate(zip(np.asarray(ours), np.asarray(theirs), strict=True))
    )


def compared(clips, arm="fedstill", baseline="all_distill", **keywords):
    return compare(clips, arm, baseline, scenario="latency_insensitive", **keywords)


class TestWilson:
    @pytest.mark.parametrize(("correct", "total"), [(250, 377), (0, 10), (10, 10), (1, 2), (59, 91)])
    def test_agrees_with_scipy(self, correct, total):
        expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
        assert wilson(correct, total) == (
            pytest.approx(expected.low, abs=2e-5),
            pytest.approx(expected.high, abs=2e-5),
        )

    @pytest.mark.parametrize(
        ("correct", "total", "half"), [(250, 377, 4.75), (256, 377, 4.69), (118, 185, 6.86), (54, 91, 9.89)]
    )
    def test_half_widths_of_the_thesis_test_sets(self, correct, total, half):
        low, high = wilson(correct, total)
        assert 100 * (high - low) / 2 == pytest.approx(half, abs=0.01)

    @given(st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
    def test_holds_the_share_and_mirrors(self, counts):
        correct, total = counts
        low, high = wilson(correct, total)
        assert 0 <= low <= correct / total <= high <= 1
        mirrored = wilson(total - correct, total)
        assert mirrored == (pytest.approx(1 - high), pytest.approx(1 - low))

    @pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3), (0, 0)])
    def test_impossible_counts_are_refused(self, correct, total):
        with pytest.raises(ValueError, match="cannot be"):
            wilson(correct, total)


class TestPooledAccuracy:
    def test_seeds_do_not_narrow_the_interval(self):
        one = pooled_accuracy([tally(65, 100)])
        five = pooled_accuracy([tally(65, 100, seed=seed) for seed in range(5)])
        assert (five.low, five.high, five.recordings) == (one.low, one.high, 100)
        assert (one.seeds, five.seeds) == (1, 5)

    def test_clients_do(self):
        two = pooled_accuracy([tally(60, 100, client=0), tally(70, 100, client=1)])
        assert two.recordings == 200
        assert (two.low, two.high) == wilson(130, 200)

    def test_known_clips_count_where_seeds_test_on_different_halves(self):
        rows = [tally(30, 50, seed=seed) for seed in range(3)]
        assert pooled_accuracy(rows, {0: 88}).recordings == 88
        assert (
            pooled_accuracy(rows[:1], {0: 88}).recordings == 50
        )  # one seed cannot have seen more than its own half

    def test_distinct_recordings_are_counted_per_client_and_scenario(self):
        rows = (
            ClipRow("latency_sensitive", 0, 0, ("a", "b"), {}),
            ClipRow("latency_sensitive", 0, 1, ("b", "c"), {}),
            ClipRow("latency_sensitive", 1, 0, ("a",), {}),
            ClipRow("latency_insensitive", 0, 0, ("a", "b", "c", "d"), {}),
        )
        assert distinct_recordings(rows, "latency_sensitive") == {0: 3, 1: 1}

    def test_no_rows_is_an_error(self):
        with pytest.raises(ValueError, match="no rows"):
            pooled_accuracy([])


def brute_force(changes):
    observed = abs(sum(changes))
    flipped = [
        abs(sum(sign * change for sign, change in zip(signs, changes, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(changes))
    ]
    return np.mean([value >= observed for value in flipped])


class TestSignFlip:
    @given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
    @settings(max_examples=60)
    def test_equals_brute_force_on_a_tiny_case(self, changes):
        assert sign_flip(np.array(changes), rng()) == pytest.approx(brute_force(changes))

    def test_random_flips_come_near_brute_force(self):
        changes = [3, 2, -1, 1, 1, -2, 3, 1, 1, -1]
        exact = brute_force(changes)
        assert 0.05 < exact < 0.4
        assert sign_flip(np.array(changes), rng(), flips=1000) == pytest.approx(exact, abs=0.04)

    def test_single_seed_is_mcnemar(self):
        changes = np.array([1] * 8 + [-1] * 3 + [0] * 20)
        assert sign_flip(changes, rng(), flips=2**11) == pytest.approx(mcnemar(8, 3))

    def test_p_is_uniform_without_an_effect(self):
        """Two arms of equal skill; each seed sees the same clips, and a clip's luck is alike in all seeds."""
        draw = np.random.default_rng(5)
        p = []
        for _ in range(400):
            luck = draw.normal(size=(2, 200))
            hits = luck[:, None, :] + draw.normal(scale=0.3, size=(2, 5, 200)) > 0
            p.append(sign_flip((hits[0].astype(int) - hits[1]).sum(axis=0), draw, flips=999))
        p = np.array(p)
        for level in (0.05, 0.25, 0.5, 0.75):
            spread = 3.5 * math.sqrt(level * (1 - level) / len(p))
            assert abs(np.mean(p <= level) - level) < spread

    def test_pooling_seeds_as_if_independent_would_not_be(self):
        """The same null: treating every (seed, clip) as its own trial rejects far too often."""
        draw = np.random.default_rng(5)
        wrong = []
        for _ in range(100):
            luck = draw.normal(size=(2, 200))
            hits = luck[:, None, :] + draw.normal(scale=0.3, size=(2, 5, 200)) > 0
            wrong.append(sign_flip((hits[0].astype(int) - hits[1]).ravel(), draw, flips=999) <= 0.05)
        assert np.mean(wrong) > 0.2


class TestMcNemar:
    @pytest.mark.parametrize(
        ("gained", "lost", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (10, 2, 0.03857421875), (7, 7, 1.0)]
    )
    def test_golden_values(self, gained, lost, p):
        assert mcnemar(gained, lost) == pytest.approx(p)
        assert mcnemar(lost, gained) == pytest.approx(p)


class TestPairedT:
    def test_golden_value(self):
        # t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom
        assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(0.0741799, abs=1e-6)

    def test_without_spread_there_is_no_nan(self):
        assert paired_t([0.0, 0.0, 0.0]) == 1.0
        assert paired_t([0.1, 0.1, 0.1]) == 0.0

    def test_one_seed_says_nothing(self):
        assert paired_t([3.0]) is None


class TestCompare:
    def test_difference_is_in_points(self):
        outcome = compared(clip_rows([[1, 1, 1, 0]], [[1, 0, 0, 0]]))
        assert outcome.difference_points == 50.0
        assert outcome.p_flips == pytest.approx(0.5)
        assert outcome.p_seeds is None
        assert outcome.label == "n.s."

    def test_equal_arms_are_not_different(self):
        hits = np.random.default_rng(1).integers(0, 2, size=(3, 40))
        outcome = compared(clip_rows(hits, hits))
        assert (outcome.difference_points, outcome.low, outcome.high) == (0, 0, 0)
        assert (outcome.p_flips, outcome.p_seeds, outcome.label) == (1.0, 1.0, "n.s.")

    def test_large_steady_gain_is_significant(self):
        theirs = np.random.default_rng(2).integers(0, 2, size=(3, 200))
        ours = theirs | (np.random.default_rng(3).random((3, 200)) < 0.3)
        outcome = compared(clip_rows(ours, theirs))
        assert outcome.low < outcome.difference_points < outcome.high
        assert outcome.low > 0
        assert outcome.label.startswith("p ")

    def test_gain_of_one_seed_only_is_not_significant(self):
        """The clips alone would call this a difference; the seeds disagree."""
        theirs = np.zeros((3, 100), int)
        ours = theirs.copy()
        ours[0, :60] = 1
        outcome = compared(clip_rows(ours, theirs))
        assert outcome.p_flips < 0.001
        assert outcome.p_seeds > 0.05
        assert outcome.label == "n.s."
        two = compared(clip_rows(ours[:2], theirs[:2]))
        assert two.p_seeds > 0.05
        assert two.label == "p < 0.001"  # two seeds are too few to be asked

    @given(st.integers(0, 10**6))
    @settings(max_examples=25, deadline=None)
    def test_swapping_the_arms_flips_the_sign(self, seed):
        draw = np.random.default_rng(seed)
        clips = clip_rows(draw.integers(0, 2, size=(3, 30)), draw.integers(0, 2, size=(3, 30)))
        one, other = compared(clips), compared(clips, "all_distill", "fedstill")
        assert one.difference_points == pytest.approx(-other.difference_points)
        assert one.p_seeds == pytest.approx(other.p_seeds)
        assert one.p_flips == pytest.approx(other.p_flips, abs=0.03)
        assert (one.low, one.high) == (
            pytest.approx(-other.high, abs=1.5),
            pytest.approx(-other.low, abs=1.5),
        )

    def test_same_clip_name_at_two_clients_is_two_clips(self):
        clips = clip_rows([[1, 1]], [[0, 0]], client=0) + clip_rows([[1, 1]], [[0, 0]], client=1)
        assert compared(clips).p_flips == pytest.approx(mcnemar(4, 0))
        assert compared(clips, client=1).p_flips == pytest.approx(mcnemar(2, 0))

    def test_bootstrap_interval_is_near_the_normal_one(self):
        draw = np.random.default_rng(4)
        ours, theirs = draw.integers(0, 2, size=(1, 400)), draw.integers(0, 2, size=(1, 400))
        outcome = compared(clip_rows(ours, theirs))
        half = 196 * (ours - theirs).std() / math.sqrt(400)
        assert (outcome.high - outcome.low) / 2 == pytest.approx(half, rel=0.06)

    def test_arms_without_common_clips_cannot_be_compared(self):
        clips = (ClipRow("latency_insensitive", 0, 0, ("a",), {"fedstill": "1"}),)
        assert compared(clips) is None
        assert compared(()) is None


def test_labels_and_signs():
    assert [p_label(p) for p in (0.05, 0.0499, 0.0004)] == ["n.s.", "p = 0.050", "p < 0.001"]
    assert [signed(value) for value in (-0.04, 0.0, 2.36, -2.36)] == ["+0.0", "+0.0", "+2.4", "-2.4"]


def test_recordings_that_are_all_alike_have_no_interval_of_their_own():
    """One recording of one speaker: no resample differs, and that is no certainty."""
    clips = [
        ClipRow(
            "latency_sensitive", 0, 0, ("a", "b", "c", "d"), {"fedstill": "1110", "all_distill": "1100"},
            ("r",) * 4, ("ann",) * 4,
        )
    ]  # fmt: skip
    row = AccuracyRow("latency_sensitive", "fedstill", 0, 0, 3, 4)
    accuracy = arm_accuracy([row], clips)
    assert (accuracy.low, accuracy.high) == wilson(0.75, 1)
    difference = compare(clips, "fedstill", "all_distill", scenario="latency_sensitive")
    assert str(difference) == "+25.0 (all recordings alike, so no interval), n.s.: 1 speaker cannot show it"
