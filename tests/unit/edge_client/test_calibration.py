"""Guards class-prior calibration: EM finds a shifted prior from unlabelled posteriors and never rules a class out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedstill.edge_client.privacy.calibration import correct_posterior, estimate_prior

Array = npt.NDArray[np.float64]


def calibrated(prior: Array, training: Array, count: int, seed: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """Exact posteriors under ``training`` of points drawn with ``prior``; a Gaussian per class on a circle."""
    rng, classes = np.random.default_rng(seed), len(prior)
    angles = 2 * np.pi * np.arange(classes) / classes
    centres = 1.6 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = rng.choice(classes, count, p=prior)
    points = centres[labels] + rng.normal(size=(count, 2))
    likelihood = np.exp(-((points[:, None] - centres) ** 2).sum(axis=2) / 2)
    joint = likelihood * training
    return joint / joint.sum(axis=1, keepdims=True), labels


def distributions(classes: int) -> st.SearchStrategy[Array]:
    weights = arrays.arrays(np.float64, classes, elements=st.floats(0.05, 1))
    return weights.map(lambda values: values / values.sum())


def posteriors() -> st.SearchStrategy[Array]:
    rows = arrays.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(4)), elements=st.floats(0, 1))
    return rows.map(lambda values: (values + 1e-12) / (values + 1e-12).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("shifted", [[0.5, 0.3, 0.2, 0.0], [0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5]])
@pytest.mark.parametrize("training", [[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
def test_em_recovers_a_shifted_prior(shifted: list[float], training: list[float]) -> None:
    probabilities, labels = calibrated(np.array(shifted), np.array(training), 4000, seed=1)
    found = estimate_prior(probabilities, np.array(training))
    np.testing.assert_allclose(found, np.bincount(labels, minlength=4) / 4000, atol=0.03)
    corrected = correct_posterior(probabilities, np.array(training), found)
    plain, better = (np.mean(rows.argmax(axis=1) == labels) for rows in (probabilities, corrected))
    assert better > plain + 0.02


@settings(deadline=None)
@given(posteriors(), distributions(4), distributions(4))
def test_corrected_rows_sum_to_one(probabilities: Array, training: Array, prior: Array) -> None:
    corrected = correct_posterior(probabilities, training, prior)
    assert corrected.shape == probabilities.shape
    assert (corrected >= 0).all()
    np.testing.assert_allclose(corrected.sum(axis=1), 1)


@settings(deadline=None)
@given(posteriors(), distributions(4))
def test_an_equal_prior_changes_nothing(probabilities: Array, prior: Array) -> None:
    np.testing.assert_allclose(correct_posterior(probabilities, prior, prior), probabilities, atol=1e-12)


@settings(deadline=None)
@given(posteriors(), distributions(4), st.floats(0.5, 20))
def test_smoothing_keeps_every_class_alive(probabilities: Array, training: Array, smoothing: float) -> None:
    prior = estimate_prior(probabilities, training, smoothing=smoothing)
    assert prior.sum() == pytest.approx(1)
    floor = smoothing * training / (len(probabilities) + smoothing)
    assert (prior >= floor * (1 - 1e-6)).all()


def test_much_smoothing_stays_at_the_training_prior() -> None:
    training = np.array([0.1, 0.2, 0.3, 0.4])
    probabilities, _ = calibrated(np.array([1.0, 0, 0, 0]), training, 50, seed=2)
    np.testing.assert_allclose(estimate_prior(probabilities, training, smoothing=1e6), training, atol=1e-3)


def test_a_row_that_the_prior_rules_out_becomes_a_shrug() -> None:
    certain = np.array([[1.0, 0.0]])
    assert correct_posterior(certain, np.array([0.5, 0.5]), np.array([0.0, 1.0])).tolist() == [[0.5, 0.5]]


def test_single_precision_input() -> None:
    probabilities, _ = calibrated(np.array([0.8, 0.1, 0.1]), np.full(3, 1 / 3), 300, seed=3)
    exact = estimate_prior(probabilities, np.full(3, 1 / 3))
    rough = estimate_prior(probabilities.astype(np.float32), np.full(3, 1 / 3, np.float32))
    np.testing.assert_allclose(rough, exact, atol=1e-4)
