"""Guards the guarantee of dp uploads: published values of the mechanism, exact composition, sensitivity, the
simplex."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import log_ndtr

from fedstill.edge_client.privacy.privacy import (
    composed,
    delta_at,
    epsilon_at,
    log_normal_below,
    sigma_for,
    spent,
)
from fedstill.edge_client.privacy.private_prototypes import (
    SENSITIVITY,
    bounded,
    cell_sums,
    onto_simplex,
    private_prototypes,
    require_rows,
)
from fedstill.edge_client.privacy.prototypes import DeviceError, summarise
from fedstill.protos.messages import Job, PrototypeRequest, Student

CLASSES = 5
NAMES = tuple("abcde")
epsilons, deltas = st.floats(0.01, 50), st.sampled_from([1e-9, 1e-6, 1e-5, 1e-3, 0.1])


def dp_request(epsilon: float = 4.0, cells: int = 3, min_size: int = 8) -> PrototypeRequest:
    centres = np.random.default_rng(5).dirichlet(np.full(CLASSES, 0.3), cells).astype(np.float32)
    return PrototypeRequest(
        job=Job("latency_insensitive", "fedstill", 0, 0),
        student=Student(np.zeros(1, np.uint8), "", NAMES, version="0" * 64),
        kind="dp",
        samples_per_prototype=3,
        min_size=min_size,
        upload_limit=0,
        temperature=1.0,
        epsilon=epsilon,
        delta=1e-5,
        centres=centres,
    )


def clips(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(CLASSES, 0.3), count).astype(np.float32)


@pytest.mark.parametrize(
    ("epsilon", "sigma"),
    [
        (0.1, 30.749566131977939),
        (1.0, 3.7306316348159418),
        (4.0, 1.0811618495202392),
        (8.0, 0.60022907219895156),
    ],
)
def test_noise_of_the_analytic_gaussian_mechanism(epsilon: float, sigma: float) -> None:
    """Roots of Balle and Wang's equation (theorem 8), found with 40 digits by mpmath."""
    assert sigma_for(epsilon, 1e-5) == pytest.approx(sigma, rel=1e-11)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0, 20.0])
def test_total_variation_of_gaussian_privacy(mu: float) -> None:
    """At epsilon 0, delta is the total variation distance of N(0, 1) and N(mu, 1): 2 Phi(mu / 2) - 1."""
    assert delta_at(mu, 0.0) == pytest.approx(math.erf(mu / 2 / math.sqrt(2)), rel=1e-9)


def test_delta_is_the_integral_it_stands_for() -> None:
    """The hockey-stick divergence of N(mu, 1) from N(0, 1), integrated numerically."""
    mu, epsilon = 1.3, 0.9
    x = np.linspace(-15, 15, 2_000_001)
    excess = np.exp(-((x - mu) ** 2) / 2) - math.exp(epsilon) * np.exp(-(x**2) / 2)
    integral = np.clip(excess, 0, None).sum() * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    assert delta_at(mu, epsilon) == pytest.approx(integral, rel=1e-7)


@settings(deadline=None)
@given(epsilons, deltas)
def test_one_upload_costs_what_it_was_asked_to(epsilon: float, delta: float) -> None:
    sigma = sigma_for(epsilon, delta)
    assert epsilon_at(1 / sigma, delta) == pytest.approx(epsilon, rel=1e-6)
    assert delta_at(1 / sigma, epsilon) <= delta


@settings(deadline=None)
@given(epsilons, deltas, st.floats(1.01, 3))
def test_more_privacy_needs_more_noise(epsilon: float, delta: float, factor: float) -> None:
    assert sigma_for(epsilon, delta) > sigma_for(epsilon * factor, delta)
    assert sigma_for(epsilon, delta) > sigma_for(epsilon, min(0.5, delta * factor))


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 2), min_size=1, max_size=8), st.floats(0.01, 2), deltas)
def test_spending_only_grows_and_order_does_not_matter(mus: list[float], more: float, delta: float) -> None:
    assert spent([*mus, more], delta) >= spent(mus, delta)
    assert spent(mus[::-1], delta) == pytest.approx(spent(mus, delta), rel=1e-9)


def test_composition_is_the_root_of_squares_and_below_adding_epsilons() -> None:
    assert composed([3.0, 4.0]) == 5.0
    one = 1 / sigma_for(1.0, 1e-5)
    assert spent([], 1e-5) == 0
    assert spent([one] * 4, 1e-5) == pytest.approx(epsilon_at(2 * one, 1e-5))
    assert 1.0 < spent([one] * 4, 1e-5) < 4.0


@pytest.mark.parametrize(
    ("mu", "delta"), [(-1.0, 0.1), (math.nan, 0.1), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)]
)
def test_nonsense_is_refused(mu: float, delta: float) -> None:
    with pytest.raises(ValueError, match=r"^(mu|delta): "):
        epsilon_at(mu, delta)


def test_a_huge_spend_is_infinite_not_an_overflow() -> None:
    assert epsilon_at(1e6, 1e-5) == math.inf
    assert epsilon_at(math.inf, 1e-5) == math.inf


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(CLASSES)), elements=st.floats(width=32)),
    st.data(),
)
def test_one_clip_moves_the_sums_by_the_sensitivity_at_most(rows: np.ndarray, data: st.DataObject) -> None:
    """Whatever a student makes of the clips, NaN and infinity included: the neighbours differ by sqrt(2) at most."""
    centres = dp_request().centres.astype(np.float64)
    gone = data.draw(st.integers(0, len(rows) - 1))
    full, without = (cell_sums(bounded(some), centres) for some in (rows, np.delete(rows, gone, axis=0)))
    assert np.linalg.norm(full - without) <= SENSITIVITY * (1 + 1e-9)
    assert (np.abs(full - without).sum(axis=1) > 1e-12).sum() == 1


def test_a_certain_clip_reaches_the_sensitivity() -> None:
    centres = dp_request().centres.astype(np.float64)
    one = cell_sums(bounded(np.eye(CLASSES, dtype=np.float32)[:1]), centres)
    assert np.linalg.norm(one) == pytest.approx(SENSITIVITY)


def test_the_noise_has_the_size_that_epsilon_asks_for() -> None:
    """Over many releases the released counts scatter by sqrt(2) sigma around the truth."""
    request, rows = dp_request(epsilon=8.0, cells=1), clips(500)
    drawn = [private_prototypes(rows, request, np.random.default_rng(seed)) for seed in range(2000)]
    counts = np.array([one.counts[0] for one in drawn])
    wanted = SENSITIVITY * sigma_for(8.0, 1e-5)
    assert counts.mean() == pytest.approx(500, abs=5 * wanted / math.sqrt(2000))
    assert counts.std() == pytest.approx(math.hypot(wanted, math.sqrt(1 / 12)), rel=0.08)
    means = np.array([one.probabilities[0] for one in drawn], np.float64)
    np.testing.assert_allclose(means.mean(axis=0), rows.mean(axis=0), atol=5e-4)
    assert (means - rows.mean(axis=0)).std() == pytest.approx(wanted / 500, rel=0.25)


@settings(deadline=None)
@given(
    arrays.arrays(np.float64, st.tuples(st.integers(0, 6), st.integers(1, 6)), elements=st.floats(-50, 50)),
    st.integers(0, 9),
)
def test_projection_lands_on_the_simplex_nearest(rows: np.ndarray, seed: int) -> None:
    found = onto_simplex(rows)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
    assert (found >= 0).all()
    others = np.random.default_rng(seed).dirichlet(np.ones(rows.shape[1]), 20)
    for row, near in zip(rows, found, strict=True):
        assert ((row - near) ** 2).sum() <= ((row - others) ** 2).sum(axis=1).min() + 1e-7


def test_projection_keeps_what_is_a_distribution() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(4), 9)
    np.testing.assert_allclose(onto_simplex(rows), rows, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_odd_clip_is_not_announced_by_a_refusal(bad: float) -> None:
    rows = clips(300)
    rows[7] = bad
    assert len(private_prototypes(rows, dp_request(), np.random.default_rng(0)).counts) >= 1
    assert np.isfinite(private_prototypes(rows, dp_request(), np.random.default_rng(0)).probabilities).all()


def test_with_little_noise_the_cells_are_the_plain_means() -> None:
    request, rows = dp_request(epsilon=900.0, min_size=1), clips(400)
    found = private_prototypes(rows, request, np.random.default_rng(0))
    sums = cell_sums(bounded(rows), request.centres.astype(np.float64))
    assert found.counts.tolist() == sums[:, 0].tolist()
    np.testing.assert_allclose(found.probabilities, sums[:, 1:] / sums[:, :1], atol=0.02)


def test_small_cells_are_left_out_and_nothing_left_is_refused() -> None:
    few = private_prototypes(clips(6), dp_request(), np.random.default_rng(0))
    assert len(few.counts) == 0
    assert few.probabilities.shape == (0, CLASSES)
    with pytest.raises(DeviceError, match="too few clips"):
        require_rows(few)


def test_dp_cannot_slip_past_the_ledger() -> None:
    with pytest.raises(DeviceError, match="privacy ledger"):
        summarise(clips(50), dp_request(), seed=0)


@given(st.floats(-1e6, 12))
def test_the_normal_distribution_is_that_of_scipy(x: float) -> None:
    assert log_normal_below(x) == pytest.approx(float(log_ndtr(x)), rel=1e-12)
