"""Public centres for differentially private prototypes: the cells in which a device counts its clips.

They come from the teacher's probabilities of the public clips, so they cost no privacy and a clip's cell depends
on that clip alone (the server-side initialisation of FedDP-KMeans, ICML 2025).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def public_centres(probabilities: Floats, count: int, seed: int) -> Floats:
    """k-means centres of (N, classes) public probability rows, float32 (at most ``count``, classes), on the simplex."""
    from sklearn.cluster import KMeans

    rows = np.asarray(probabilities, np.float64)
    count = min(count, len(np.unique(rows, axis=0)))
    centres = KMeans(count, n_init=1, random_state=seed).fit(rows).cluster_centers_
    centres = np.clip(centres, 0, None)  # k-means leaves rounding errors
    rows_of_one: Floats = (centres / centres.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows_of_one


def one_cell(classes: int) -> Floats:
    """A single centre: every clip is counted in it, which makes the release a histogram."""
    return np.full((1, classes), 1 / classes, np.float32)
