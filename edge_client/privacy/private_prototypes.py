"""Prototypes with differential privacy: noisy counts and noisy probability sums of public cells.

The cloud sends *public* centres, so the cell of a clip depends on that clip alone (the server-side
initialisation of FedDP-KMeans, ICML 2025). A clip therefore adds one vector (1, p) to one cell and nothing
to the others. Its length is sqrt(1 + |p|^2) <= sqrt(2), because a probability row has length at most 1 (a certain
one has exactly 1): that is the L2 sensitivity of the whole release under adding or removing one clip. Gaussian
noise of standard deviation sqrt(2) * sigma_for(epsilon, delta) on every number makes it (epsilon, delta) private
(if a capture card is asked for, too, more noise, so that both together are);
all that follows (leaving out small cells, dividing, projecting) sees the noisy numbers only and costs nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedstill.edge_client.privacy.privacy import sigma_of_share
from fedstill.edge_client.privacy.prototypes import DeviceError, Prototypes
from fedstill.protos.messages import MOST_CLIPS, PrototypeRequest

Floats = npt.NDArray[np.float64]

SENSITIVITY = math.sqrt(2)
DOUBTFUL = 2.0
"""A noisy count below so many standard deviations of its noise is treated as an empty cell."""


def private_prototypes(
    probabilities: npt.NDArray[np.float32], request: PrototypeRequest, rng: np.random.Generator
) -> Prototypes:
    """A release of kind ``dp`` from (n, classes) probabilities of the device's own clips.

    Args:
        probabilities: one row per clip. A row must depend on its clip only, which a calibrated row does not.
        request: with epsilon, delta and centres.
        rng: of the noise; it must be unpredictable to everybody else, or the guarantee is void.

    Returns:
        Rows on the simplex and rounded noisy counts of the cells that seem to hold at least ``request.min_size`` clips.
        May have no rows.
    """
    noise = SENSITIVITY * sigma_of_share(request.epsilon, request.delta, 1 - request.card_share)
    exact = cell_sums(bounded(probabilities), request.centres.astype(np.float64))
    noisy = exact + rng.normal(0.0, noise, exact.shape)
    kept = noisy[noisy[:, 0] >= max(request.min_size, DOUBTFUL * noise)]
    counts = np.clip(np.rint(kept[:, 0]), 1, MOST_CLIPS).astype(np.int64)
    rows = onto_simplex(kept[:, 1:] / kept[:, :1])
    return Prototypes(rows.astype(np.float32), counts)


def require_rows(prototypes: Prototypes) -> Prototypes:
    """Refuse to upload nothing. That every cell seemed small is itself a noisy answer, and so costs nothing more."""
    if len(prototypes.counts) == 0:
        raise DeviceError(
            "every cell seems to hold too few clips after the noise; ask for fewer centres or a larger epsilon"
        )
    return prototypes


def cell_sums(rows: Floats, centres: Floats) -> Floats:
    """Per centre the number of rows nearest to it, then their sum; float64 (cells, 1 + classes).

    Euclidean distance, the lower centre in a tie. A row changes one cell, by (1, row).
    """
    distance = (centres**2).sum(axis=1) - 2 * rows @ centres.T
    sums = np.zeros((len(centres), 1 + centres.shape[1]))
    np.add.at(sums, distance.argmin(axis=1), np.column_stack([np.ones(len(rows)), rows]))
    return sums


def bounded(probabilities: npt.NDArray[np.floating]) -> Floats:
    """Every row a probability vector, whatever the student made of the clip; float64.

    The sensitivity depends on it, and a refusal of an odd row would reveal that such a clip is there. So a row with
    NaN, infinite or no mass becomes the uniform one.
    """
    rows = np.asarray(probabilities, np.float64)
    usable = np.isfinite(rows).all(axis=1, keepdims=True)
    rows = np.clip(np.where(usable, rows, 0.0), 0.0, 1.0)
    mass = rows.sum(axis=1, keepdims=True)
    return np.where(mass > 0, rows / np.where(mass > 0, mass, 1.0), 1.0 / rows.shape[1])


def onto_simplex(rows: Floats) -> Floats:
    """The nearest probability vector of each row (Duchi et al. 2008); float64 (n, classes)."""
    order = -np.sort(-rows, axis=1)
    excess = order.cumsum(axis=1) - 1
    rank = np.arange(1, rows.shape[1] + 1)
    last = (order - excess / rank > 0).sum(axis=1)
    shift = np.take_along_axis(excess, last[:, None] - 1, axis=1) / last[:, None]
    projected: Floats = np.maximum(rows - shift, 0.0)
    projected /= projected.sum(axis=1, keepdims=True)
    return projected
