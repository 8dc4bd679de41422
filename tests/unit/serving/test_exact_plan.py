"""The plans: the exact one equals trying everything, and no plan holds a batch that is late."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.policies.exact_plan import BatchPlan, Floats, exact_plan, grid_plan
from fedstill.cloud_server.serving.policies.token_allocation import allocate_indices

Problem = tuple[Floats, Floats, Floats]


def made_problem(seed: int, most_batches: int = 5, options: int = 4) -> Problem:
    """Seconds rise and values change at random with the option; slack is tight enough that not all can run."""
    generator = np.random.default_rng(seed)
    batches = int(generator.integers(1, most_batches + 1))
    seconds = np.cumsum(generator.uniform(0.01, 0.1, (batches, options)), axis=1)
    values = generator.uniform(-0.2, 1.0, (batches, options))
    slack = np.sort(generator.uniform(0.0, 0.15 * batches + 0.1, batches))
    return seconds, values, slack


def brute_force(seconds: Floats, values: Floats, slack: Floats) -> float:
    """The most value over all ways to skip or run each batch, in every order, not only by deadline."""
    batches, options = seconds.shape
    best = 0.0
    for order in itertools.permutations(range(batches)):
        for choices in itertools.product((None, *range(options)), repeat=batches):
            clock, value = 0.0, 0.0
            for batch in order:
                option = choices[batch]
                if option is not None:
                    clock += seconds[batch, option]
                    value += values[batch, option] if clock <= slack[batch] else -np.inf
            best = max(best, value)
    return best


def brute_force_by_deadline(seconds: Floats, values: Floats, slack: Floats) -> float:
    """As `brute_force`, in order of deadline only: quick enough for five batches."""
    options = seconds.shape[1]
    best = 0.0
    for choices in itertools.product((None, *range(options)), repeat=len(slack)):
        clock = value = 0.0
        for batch, option in enumerate(choices):
            if option is not None:
                clock += seconds[batch, option]
                if clock > slack[batch]:
                    break
                value += values[batch, option]
        else:
            best = max(best, value)
    return best


def worth(plan: BatchPlan, problem: Problem) -> float:
    """The plan's value, counted again; fails where a batch of it would be late."""
    seconds, values, slack = problem
    clock = value = 0.0
    for batch, option in enumerate(plan.choices):
        if option is not None:
            clock += seconds[batch, option]
            value += values[batch, option]
            assert clock <= slack[batch] + 1e-9
    return value


def test_the_exact_plan_equals_brute_force_on_600_random_queues() -> None:
    for seed in range(600):
        problem = made_problem(seed)
        plan = exact_plan(*problem)
        assert plan.value == pytest.approx(brute_force_by_deadline(*problem), abs=1e-12), seed
        assert worth(plan, problem) == pytest.approx(plan.value, abs=1e-12)


def test_no_other_order_than_by_deadline_earns_more() -> None:
    for seed in range(60):
        problem = made_problem(seed, most_batches=3, options=2)
        assert exact_plan(*problem).value == pytest.approx(brute_force(*problem), abs=1e-12)


def test_the_grid_plan_is_exact_where_all_times_lie_on_the_grid() -> None:
    generator = np.random.default_rng(1)
    for _ in range(500):
        batches = int(generator.integers(1, 6))
        seconds = generator.integers(1, 8, (batches, 4)) / 64  # sums of these are exact
        values = generator.uniform(-0.2, 1.0, (batches, 4))
        slack = np.sort(generator.integers(0, 6 * batches, batches)) / 64
        problem = (seconds, values, slack)
        plan = grid_plan(*problem, 1 / 64)
        assert plan.value == pytest.approx(exact_plan(*problem).value, abs=1e-12)
        assert worth(plan, problem) == pytest.approx(plan.value, abs=1e-12)


@given(seed=st.integers(0, 2**32), resolution=st.floats(0.001, 0.1))
def test_a_grid_plan_is_never_late_and_never_better_than_exact(seed: int, resolution: float) -> None:
    problem = made_problem(seed, most_batches=8)
    plan = grid_plan(*problem, resolution)
    assert worth(plan, problem) == pytest.approx(plan.value, abs=1e-9)
    assert plan.value <= exact_plan(*problem).value + 1e-9


@given(seed=st.integers(0, 2**32), more=st.floats(0.0, 1.0), which=st.integers(0, 7))
def test_more_time_never_lowers_the_value(seed: int, more: float, which: int) -> None:
    seconds, values, slack = made_problem(seed, most_batches=8)
    later = slack + more
    assert exact_plan(seconds, values, later).value >= exact_plan(seconds, values, slack).value - 1e-12
    assert (
        grid_plan(seconds, values, later, 0.01).value >= grid_plan(seconds, values, slack, 0.01).value - 1e-12
    )
    # Time for the last batch alone leaves the order as it was.
    slack_of_last = slack.copy()
    slack_of_last[-1] += more
    assert (
        exact_plan(seconds, values, slack_of_last).value >= exact_plan(seconds, values, slack).value - 1e-12
    )


def test_a_fine_grid_loses_little() -> None:
    shares = []
    for seed in range(100):
        problem = made_problem(seed, most_batches=5)
        best = exact_plan(*problem).value
        if best > 0:
            shares.append(grid_plan(*problem, 0.0005).value / best)
    assert np.mean(shares) > 0.99


def test_algorithm_2_never_beats_the_exact_plan_and_sometimes_loses() -> None:
    lost = 0
    for seed in range(200):
        seconds, values, slack = made_problem(seed, most_batches=8)
        values = np.abs(values)
        chosen = BatchPlan(allocate_indices(seconds, values, slack, 0.0), 0.0)
        value = worth(chosen, (seconds, values, slack))
        best = exact_plan(seconds, values, slack).value
        assert value <= best + 1e-9
        lost += value < best - 1e-9
    assert lost > 0


def test_without_batches_there_is_nothing_to_plan() -> None:
    empty = np.empty((0, 3))
    assert exact_plan(empty, empty, np.empty(0)) == BatchPlan((), 0.0)
    assert grid_plan(empty, empty, np.empty(0), 0.01) == BatchPlan((), 0.0)
