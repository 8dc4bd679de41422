"""Algorithm 7's selection as one candidate among others: the public clips that are most like a device's prototypes.

Whether prototypes may pay is known before a device uploads any: public speakers, with the device's classes and as it
records, play it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.selection import per_prototype, select_nearest

Positions = npt.NDArray[np.int64]


def select_similar(
    prototypes: npt.NDArray[np.floating], public: npt.NDArray[np.floating], budget: int
) -> Positions:
    """``select_nearest`` with equal shares. A device with more prototypes than the budget gets one clip for each, as
    far as there are public clips: more data must not mean no student.

    Args:
        prototypes: (k, classes) probabilities.
        public: (N, classes) probabilities of the public clips.
        budget: clips to choose.
    """
    rows = prototypes[: len(public)]
    return select_nearest(rows, public, per_prototype(min(max(budget, len(rows)), len(public)), len(rows)))


def played_prototypes(
    probabilities: npt.NDArray[np.floating], samples_per_prototype: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Means of k-means clusters of about ``samples_per_prototype`` rows, float32 (k, classes).

    Args:
        probabilities: (n, classes), as the device's clips would have.
    """
    from sklearn.cluster import KMeans

    distinct = len(np.unique(probabilities, axis=0))
    clusters = min(max(1, len(probabilities) // samples_per_prototype), distinct)
    centres = (
        KMeans(clusters, n_init=1, random_state=int(rng.integers(2**31))).fit(probabilities).cluster_centers_
    )
    return np.asarray(centres / centres.sum(axis=1, keepdims=True), np.float32)
