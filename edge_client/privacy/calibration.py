"""Class-prior calibration: a device whose classes differ from the public set's corrects its probabilities for that.

Saerens, Latinne and Decaestecker (2002): under label shift the posterior only needs re-weighting by the
ratio of the new prior to the old one, and the new prior follows from unlabelled predictions by EM.
Nothing is uploaded. The thesis does not do this; it is the control that selection has to beat.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def estimate_prior(
    probabilities: Array, training_prior: Array, *, smoothing: float = 1.0, iterations: int = 200
) -> npt.NDArray[np.float64]:
    """EM estimate of the class prior behind ``probabilities``.

    Args:
        probabilities: (n, classes) posteriors under ``training_prior``, rows sum to 1.
        training_prior: (classes,) prior that the posteriors assume; a class with 0 stays ruled out.
        smoothing: weight of ``training_prior`` in clips (a Dirichlet prior); keeps a small
            sample from ruling a class out.
        iterations: upper bound; stops when no class moves by more than 1e-6.

    Returns:
        (classes,) float64, sums to 1.
    """
    posterior = np.asarray(probabilities, np.float64)
    old = np.asarray(training_prior, np.float64)
    prior = old.copy()
    for _ in range(iterations):
        corrected = correct_posterior(posterior, old, prior)
        updated = corrected.sum(axis=0) + smoothing * old
        updated /= updated.sum()
        moved = np.abs(updated - prior).max()
        prior = updated
        if moved < 1e-6:
            break
    return prior


def calibrated(class_probabilities: Array, known: Array, training_prior: Array) -> npt.NDArray[np.float32]:
    """Probabilities under the class prior that ``known`` shows, float32; both (n, classes), of ``training_prior``."""
    prior = estimate_prior(known, training_prior)
    return correct_posterior(class_probabilities, training_prior, prior).astype(np.float32)


def correct_posterior(probabilities: Array, training_prior: Array, prior: Array) -> npt.NDArray[np.float64]:
    """Posteriors under ``prior`` instead of ``training_prior``: multiply by the ratio, normalise. (n, classes)."""
    old = np.asarray(training_prior, np.float64)
    ratio = np.divide(prior, old, out=np.zeros(len(old)), where=old > 0)
    weighted = np.asarray(probabilities, np.float64) * ratio
    total = weighted.sum(axis=1, keepdims=True)
    return np.where(total > 0, weighted / np.where(total > 0, total, 1), 1 / weighted.shape[1])
