"""The fluid knapsack and its price, by hand and against a linear programme; the bounds against policies."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.queries import ON_THESIS, made_profile
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.fluid_reference import upper_bound, window_reference
from fedstill.cloud_server.serving.scheduling.profile import Schedule
from fedstill.cloud_server.serving.scheduling.shadow_price import Demand, HullStep, fluid_optimum, upper_hull
from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile
from fedstill.cloud_server.serving.scheduling.virtual_time import as_queries, simulate
from fedstill.datasets.loads.arrivals import thesis_synthetic
from fedstill.datasets.loads.query_mix import draw_load

INFINITE = float("inf")


def schedules(*points: tuple[float, float]) -> list[Schedule]:
    """Schedules of one task from (seconds per query, accuracy)."""
    return [Schedule(str(place), place, 0.0, s, (a,)) for place, (s, a) in enumerate(points)]


def test_the_hull_leaves_out_what_lies_below_it() -> None:
    hull = upper_hull(schedules((0.01, 0.5), (0.02, 0.6), (0.03, 0.9), (0.04, 0.85)), 0, INFINITE)
    assert [(step.seconds, step.accuracy) for step in hull] == [
        pytest.approx((0.01, 0.5)),
        pytest.approx((0.02, 0.4)),
    ]


def test_the_fixed_time_is_shared_by_the_batch() -> None:
    fast = made_profile().fastest
    assert upper_hull([fast], 0, 1)[0].seconds == pytest.approx(0.02)
    assert upper_hull([fast], 0, 10)[0].seconds == pytest.approx(0.011)


def test_the_price_is_that_of_the_step_where_time_runs_out() -> None:
    """Ten queries: 0.1 s for half a point each (50 per second), then 0.2 s for 0.4 more (20 per second)."""
    hulls = [(HullStep(0.01, 0.5), HullStep(0.02, 0.4))]
    demand = [Demand(0, 1.0, 10)]
    for capacity, value, price in ((0.05, 2.5, 50), (0.2, 5 + 2, 20), (0.31, 9, 0), (1.0, 9, 0)):
        best = fluid_optimum(demand, hulls, capacity)
        assert (best.value, best.price) == pytest.approx((value, price))


@given(
    counts=st.lists(st.integers(0, 50), min_size=3, max_size=3),
    utilities=st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    capacity=st.floats(0.001, 1.0),
)
def test_the_greedy_fill_is_the_linear_programme(
    counts: list[int], utilities: list[float], capacity: float
) -> None:
    profile = thesis_profile()
    hulls = [upper_hull(profile.useful, task, INFINITE) for task in range(3)]
    demand = [Demand(task, utilities[task], counts[task]) for task in range(3)]
    seconds = np.array([s.per_query_seconds for s in profile.useful])
    gains = np.array([[u * s.accuracy[task] for s in profile.useful] for task, u in enumerate(utilities)])
    solved = linprog(
        -gains.ravel(),
        A_ub=np.vstack([np.kron(np.eye(3), np.ones(len(seconds))), np.tile(seconds, 3)]),
        b_ub=[*counts, capacity],
    )
    assert fluid_optimum(demand, hulls, capacity).value == pytest.approx(-solved.fun, abs=1e-6)


@pytest.mark.parametrize("name", sorted(set(ON_THESIS) - {"infaas"}))  # the bound knows no whole models
def test_no_policy_expects_more_than_the_upper_bound(name: str) -> None:
    """Expected utility, so without chance: every query counts with the accuracy of the schedule that served it."""
    profile = thesis_profile()
    load = draw_load(
        thesis_synthetic(20, np.random.default_rng(5), 1.5), profile.tasks, np.random.default_rng(6)
    )
    outcome = simulate(make_policy(name, profile), load, as_queries(load), profile, np.random.default_rng(0))
    accuracy = np.array([schedule.accuracy for schedule in profile.everything])
    in_time = (outcome.kind == 1) | (outcome.kind == 2)
    expected = (load.utility * accuracy[outcome.schedule, load.task])[in_time].sum()
    assert expected <= upper_bound(load, profile) * (1 + 1e-9)


def test_with_time_to_spare_both_references_are_the_best_accuracy() -> None:
    profile = thesis_profile()
    load = draw_load(np.array([0.1, 5.2, 9.3]), profile.tasks, np.random.default_rng(1))
    best = np.array([max(s.accuracy[task] for s in profile.useful) for task in range(3)])
    expected = float((load.utility * best[load.task]).sum())
    assert window_reference(load, profile) == pytest.approx(expected)
    assert upper_bound(load, profile) == pytest.approx(expected)
