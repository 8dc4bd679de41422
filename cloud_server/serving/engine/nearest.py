"""How good embeddings are: whether the nearest other image is of the same class (recall at 1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def nearest_right(queries: Vectors, gallery: Vectors, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which images have their class in common with the nearest other image, by cosine similarity; bool (images,).

    Args:
        queries: (images, width), the embeddings to judge; a row with NaN is wrong.
        gallery: (images, width), of the same images, such as those without merging, which are stored.
        labels: (images,).
    """
    similar = _unit(queries) @ _unit(gallery).T
    np.fill_diagonal(similar, -np.inf)
    similar[np.isnan(similar)] = -np.inf
    right: npt.NDArray[np.bool_] = labels[similar.argmax(axis=1)] == labels
    return right & np.isfinite(queries).all(axis=1)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    return units
