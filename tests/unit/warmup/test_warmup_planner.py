"""Both planners: they give the published sets, never exceed a budget, and leave pairs that cannot be split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.warmup.facility_planner import AccuracyCurve, fit_curve, plan_by_coverage
from fedstill.cloud_server.warmup.planner import Budget, Cost, plan_ratios
from fedstill.cloud_server.warmup.reductions import (
    THESIS_REDUCTIONS,
    check_reductions,
    spread,
)
from fedstill.common.errors import DataError

R = THESIS_REDUCTIONS
PLANNERS = [plan_ratios, plan_by_coverage]


class MadeWorkshop:
    """Accuracy by position in the list: ``own`` of a model where it was fine-tuned, less where it was not."""

    def __init__(self, own, reductions=R, seconds=lambda r: 1.0, size=1) -> None:
        self.own, self.reductions, self.seconds, self.size = own, reductions, seconds, size
        self.made: list[int] = []

    def cost(self, reduction: int) -> Cost:
        return Cost(self.seconds(reduction), self.size)

    def fine_tune(self, reduction: int) -> Cost:
        self.made.append(reduction)
        return self.cost(reduction)

    def of(self, model: int, reduction: int) -> float:
        away = self.reductions.index(reduction) - self.reductions.index(model)
        return self.own(self.reductions.index(reduction)) - (0.03 * away if away > 0 else -0.003 * away)

    def accuracy(self, reduction: int) -> float:
        return max(self.of(model, reduction) for model in self.made)

    def accuracies(self, model: int) -> dict[int, float]:
        return {reduction: self.of(model, reduction) for reduction in self.reductions}


class Curve(MadeWorkshop):
    """Accuracy that depends on the reduction alone: what the thesis' figures show of the best model."""

    def accuracy(self, reduction: int) -> float:
        return self.own(self.reductions.index(reduction))


def test_the_set_published_for_vit_base_comes_out() -> None:
    """Flat up to 20, then steeper and steeper."""
    backend = Curve(lambda at: 0.9 - 0.004 * max(0, at - 18) ** 2)
    assert set(plan_ratios(backend, R, 20, Budget(models=6))) == {20, 24, 30, 40, 50, 100}


def test_the_set_published_for_vit_large_comes_out() -> None:
    """It falls from 10 on, most of all around 25, and levels off where no tokens are left to lose."""
    falls = [0.0] * 11 + [0.025] * 14 + [0.1] * 2 + [0.03] * 3
    backend = Curve(lambda at: 0.9 - sum(falls[: at + 1]))
    assert set(plan_ratios(backend, R, 10, Budget(models=6))) == {10, 14, 19, 24, 30, 100}


def test_the_midpoint_is_one_of_the_list_and_not_of_the_numbers() -> None:
    assert plan_ratios(Curve(lambda at: -at), R, 20, Budget(models=3))[2] == 24  # and not 60


@pytest.mark.parametrize("plan", PLANNERS)
def test_without_a_limit_it_ends_and_repeats_nothing(plan) -> None:
    backend = MadeWorkshop(lambda at: 0.9 - 0.01 * at)
    chosen = plan(backend, R, 20, Budget())
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(R)


def test_pairs_of_neighbours_and_pairs_of_one_are_not_split() -> None:
    short = (0, 1, 2, 3, 4)
    chosen = plan_ratios(Curve(lambda at: -at, short), short, 0, Budget())
    assert set(chosen) == {0, 4, 2, 3}  # (0, 1), (2, 2) and (3, 4) stay whole


@pytest.mark.parametrize("plan", PLANNERS)
@given(
    own=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    seconds=st.lists(st.floats(0.1, 10), min_size=8, max_size=8),
    limits=st.tuples(st.floats(1, 60), st.integers(1, 8), st.integers(2, 8)),
    middle=st.integers(0, 6),
)
def test_no_budget_is_ever_exceeded(plan, own, seconds, limits, middle) -> None:
    allowed = (0, 3, 5, 8, 12, 20, 40, 100)
    backend = MadeWorkshop(lambda at: own[at], allowed, lambda r: seconds[allowed.index(r)])
    budget = Budget(limits[0], limits[1], limits[2])
    try:
        chosen = plan(backend, allowed, allowed[middle], budget)
    except DataError:
        assert backend.made == []  # refused before anything was spent
        return
    assert list(chosen) == backend.made
    assert len(set(chosen)) == len(chosen) <= limits[2]
    assert sum(backend.cost(r).seconds for r in chosen) <= limits[0] + 1e-9
    assert len(chosen) <= limits[1]  # bytes, one per model


def test_a_smaller_reduction_that_costs_too_much_is_replaced_by_a_larger_one() -> None:
    backend = Curve(lambda at: -at, seconds=lambda r: 100 / (1 + r))
    limit = sum(backend.cost(r).seconds for r in (20, 100, 40)) + 0.01
    assert plan_ratios(backend, R, 20, Budget(seconds=limit)) == (20, 100, 40)  # 24 and 30 are too dear


@pytest.mark.parametrize("plan", PLANNERS)
def test_a_budget_that_holds_no_two_models_says_what_they_take(plan) -> None:
    backend = MadeWorkshop(lambda at: 0.5, size=2_000_000)
    with pytest.raises(DataError, match=r"reductions 20 and 100: they take 2 models, 2 s and 4\.0 MB"):
        plan(backend, R, 20, Budget(bytes=3_000_000))
    with pytest.raises(DataError, match="middle: 21"):
        plan(backend, (0, 20, 100), 21, Budget())
    with pytest.raises(DataError, match="above 0"):
        Budget(models=0)


def test_greedy_covers_what_the_midpoint_rule_leaves_out() -> None:
    """A fall before r_mid: Algorithm 4 never looks below it, coverage does."""
    own = [0.9] * 5 + [0.6] * 25
    workshops = [MadeWorkshop(lambda at: own[at]) for _ in PLANNERS]
    for backend, plan in zip(workshops, PLANNERS, strict=True):
        plan(backend, R, 20, Budget(models=4))
    assert min(workshops[0].made) == 20
    assert min(workshops[1].made) < 20


def test_the_curve_finds_the_rates_that_made_the_points() -> None:
    truth = AccuracyCurve(((0, 0.9), (4, 0.8), (8, 0.4)), 0.3, 0.05)
    found = fit_curve({(m, r): truth.accuracy(m, r) for m in (0, 4, 8) for r in range(9)})
    assert (found.up, found.down) == pytest.approx((0.3, 0.05))
    assert found.accuracy(2, 2) == pytest.approx(0.85)
    assert found.accuracy(2, 6) == pytest.approx(truth.accuracy(2, 6))


def test_a_curve_of_one_model_promises_no_gain() -> None:
    found = fit_curve({(3, 3): 0.8, (3, 5): 0.6})
    assert (found.up, found.down) == (0.0, 0.0)
    assert found.accuracy(5, 5) == 0.6


def test_reductions_that_are_the_same_forward_pass_are_named() -> None:
    assert check_reductions(R, 12, 196) == R
    with pytest.raises(DataError, match="100 and 98 are the same forward pass on 196 patches: leave 100 out"):
        check_reductions((0, 98, 100), 12, 196)
    with pytest.raises(DataError, match="same forward pass"):
        check_reductions((0, 20, 20), 12, 196)
    with pytest.raises(DataError, match="at least two"):
        check_reductions((20,), 12, 196)


def test_between_measured_reductions_lies_a_line_over_list_positions() -> None:
    assert spread({0: 1.0, 30: 0.4}, (0, 10, 20, 30, 100)) == pytest.approx(
        {0: 1.0, 10: 0.8, 20: 0.6, 30: 0.4, 100: 0.4}
    )
