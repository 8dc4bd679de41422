"""Our k-means against linear programming, scikit-learn and k-means-constrained: as good or better, and repeatable."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from k_means_constrained import KMeansConstrained
from k_means_constrained.k_means_constrained_ import (
    minimum_cost_flow_problem_graph,
    solve_min_cost_flow_graph,
)
from scipy.optimize import linprog
from sklearn.cluster import KMeans

from fedstill.edge_client.privacy.bounded_assignment import assign
from fedstill.edge_client.privacy.kmeans import bounded_kmeans, kmeans, sum_of_squares

SETS = 100


def answers(seed: int) -> npt.NDArray[np.float32]:
    """A student's class probabilities of 16 to 80 clips: from undecided to sure."""
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(16, 80)), int(rng.integers(2, 12))
    return rng.dirichlet(np.full(shape[1], rng.choice([0.1, 0.5, 2.0])), shape[0]).astype(np.float32)


def least_cost(costs: npt.NDArray[np.float64], low: int, high: int) -> float:
    """By linear programming, whose corners are whole numbers here."""
    rows, clusters = costs.shape
    one_each = np.kron(np.eye(rows), np.ones(clusters))
    sizes = np.tile(np.eye(clusters), rows)
    found = linprog(
        costs.ravel(), np.vstack([sizes, -sizes]), np.repeat([high, -low], clusters), one_each, np.ones(rows)
    )
    return float(found.fun)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 4), st.integers(0, 10**6), st.booleans())
def test_no_assignment_within_the_bounds_costs_less(
    clusters: int, low: int, more: int, seed: int, ties: bool
) -> None:
    rng, high = np.random.default_rng(seed), max(1, low + more)
    rows = int(rng.integers(max(1, low * clusters), high * clusters + 1))
    costs = rng.random((rows, clusters)) ** 3
    costs = np.round(4 * costs) if ties else costs
    _, prices = assign(costs + 0.3 * rng.random(costs.shape), low, high)
    for known in (None, prices):
        labels, _ = assign(costs, low, high, known)
        sizes = np.bincount(labels, minlength=clusters)
        assert low <= sizes.min()
        assert sizes.max() <= high
        assert costs[np.arange(rows), labels].sum() == pytest.approx(least_cost(costs, low, high), abs=1e-9)


def test_every_assignment_costs_as_much_as_that_of_a_solver_of_flows() -> None:
    for seed in range(SETS):
        rows = answers(seed).astype(np.float64)
        clusters = max(2, len(rows) // 8)
        centres = rows[np.random.default_rng(seed).choice(len(rows), clusters, replace=False)]
        distances = np.linalg.norm(rows[:, None] - centres, axis=2)
        graph = minimum_cost_flow_problem_graph(rows, centres, distances, 8, 16)
        whole = np.around(1000 * distances)  # as the solver counts
        theirs, (ours, _) = solve_min_cost_flow_graph(*graph), assign(whole, 8, 16)
        everyone = np.arange(len(rows))
        assert whole[everyone, ours].sum() == whole[everyone, theirs].sum()


def test_bounded_clusters_are_at_least_as_good_as_those_of_k_means_constrained() -> None:
    ratios = []
    for seed in range(SETS):
        rows, low = answers(seed), (3, 8)[seed % 2]
        clusters, high = max(2, len(rows) // low), 2 * low
        ours = bounded_kmeans(rows, clusters, low, high, seed)
        model = KMeansConstrained(clusters, low, high, n_init=1, random_state=seed, max_iter=50)
        theirs = model.fit_predict(rows.astype(np.float64))
        ratios.append(sum_of_squares(rows, ours) / sum_of_squares(rows, theirs))
    assert np.mean(ratios) < 0.95
    assert np.mean(np.array(ratios) <= 1 + 1e-9) >= 0.95, "it finds local optima, so a few may be worse"
    assert max(ratios) < 1.05


def test_plain_clusters_are_those_of_scikit_learn() -> None:
    """Where rounding does not decide which row is drawn."""
    same = 0
    for seed in range(SETS):
        rows = answers(seed)
        clusters = -(-len(rows) // 3)
        theirs = KMeans(clusters, n_init=1, random_state=seed).fit_predict(rows)
        same += np.array_equal(kmeans(rows, clusters, seed), theirs)
    assert same >= 0.9 * SETS


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_rows_that_are_alike_do_not_matter(distinct: int) -> None:
    rows = np.resize(answers(1)[:distinct], (40, answers(1).shape[1]))
    labels = bounded_kmeans(rows, 5, 8, 16, seed=0)
    assert np.bincount(labels).tolist() == [8] * 5


def test_the_same_seed_gives_the_same_clusters() -> None:
    rows = answers(2)
    assert np.array_equal(bounded_kmeans(rows, 4, 8, 40, 7), bounded_kmeans(rows, 4, 8, 40, 7))


@pytest.mark.parametrize("bounds", [(9, 40), (0, 7)])
def test_bounds_that_cannot_be_kept_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="32 rows: 4 clusters of"):
        assign(np.ones((32, 4)), *bounds)
