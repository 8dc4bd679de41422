"""From a device's class probabilities to the few rows that it uploads (thesis 5.3.4).

``kmeans`` does what the thesis did: k = ceil(n / 3) plain k-means clusters, of which about half hold a
single clip, which is no privacy. ``constrained`` forbids clusters below a minimum size. Differentially private
prototypes are made in ``private_prototypes.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedstill.edge_client.privacy.kmeans import bounded_kmeans, kmeans
from fedstill.models.audiovisual.confidence import confidence_histogram
from fedstill.protos.messages import PrototypeRequest
from fedstill.protos.packed_upload import coarse_rows

Probabilities = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


class DeviceError(ValueError):
    """Something that this device cannot or will not do; the text is one line and reaches the operator."""


@dataclass(frozen=True)
class Prototypes:
    """Rows that sum to 1, float32 (k, classes), and the number of clips behind each, int64 (k,).

    ``confidence`` is the histogram of confidences, float32 (CONFIDENCE_BINS,), and ``card`` the bytes of the capture
    card, uint8 (CARD_BYTES,); both are empty unless they were asked for.
    """

    probabilities: Probabilities
    counts: Counts
    confidence: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    card: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))


def summarise(probabilities: Probabilities, request: PrototypeRequest, seed: int) -> Prototypes:
    """What ``request.kind`` asks for, from (n, classes) probabilities of the device's own clips.

    Raises:
        DeviceError: no clips, or too few for the minimum cluster size.
    """
    if len(probabilities) == 0:
        raise DeviceError("this device has no clips, so there is nothing to summarise")
    if not np.isfinite(probabilities).all():
        raise DeviceError("the student gives NaN probabilities on this device; nothing is uploaded")
    rng = np.random.default_rng(seed)
    if request.upload_limit and request.upload_limit < len(probabilities):
        chosen = rng.choice(len(probabilities), request.upload_limit, replace=False)
        probabilities = probabilities[np.sort(chosen)]
    if request.kind == "samples":
        return Prototypes(probabilities, np.ones(len(probabilities), np.int64))
    if request.kind == "histogram":
        _require_crowd(len(probabilities), request.min_size)
        one = _means(probabilities, np.zeros(len(probabilities), np.int64))
        return replace(one, confidence=confidence_histogram(probabilities))
    if request.kind == "kmeans":
        return _as_asked(kmeans_prototypes(probabilities, request.samples_per_prototype, seed), request)
    if request.kind == "constrained":
        size = max(request.samples_per_prototype, request.min_size)
        return _as_asked(constrained_prototypes(probabilities, size, request.min_size, seed), request)
    raise DeviceError(f"{request.kind} prototypes are released through the privacy ledger only")


def kmeans_prototypes(probabilities: Probabilities, samples_per_prototype: int, seed: int) -> Prototypes:
    """Plain k-means with k = ceil(n / samples_per_prototype), never more than the distinct rows there are."""
    distinct = len(np.unique(probabilities, axis=0))
    clusters = min(-(-len(probabilities) // samples_per_prototype), distinct)
    return _means(probabilities, kmeans(probabilities, clusters, seed))


def constrained_prototypes(
    probabilities: Probabilities, samples_per_prototype: int, min_size: int, seed: int
) -> Prototypes:
    """k-means whose every cluster holds at least ``min_size`` clips.

    Raises:
        DeviceError: fewer clips than ``min_size``: even one cluster would say too much about one clip.
    """
    _require_crowd(len(probabilities), min_size)
    clusters = max(1, len(probabilities) // samples_per_prototype)
    if clusters == 1:
        return _means(probabilities, np.zeros(len(probabilities), np.int64))
    most = max(2 * samples_per_prototype, min_size)
    return _means(probabilities, bounded_kmeans(probabilities, clusters, min_size, most, seed))


def _as_asked(found: Prototypes, request: PrototypeRequest) -> Prototypes:
    return replace(found, probabilities=coarse_rows(found.probabilities)) if request.coarse else found


def _require_crowd(clips: int, min_size: int) -> None:
    """A mean over very few clips says too much about each of them."""
    if clips < min_size:
        raise DeviceError(
            f"{clips} clips are fewer than the minimum cluster size {min_size}; nothing is uploaded"
        )


def _means(probabilities: Probabilities, assigned: npt.NDArray[np.integer]) -> Prototypes:
    """Cluster means in order of cluster number; empty clusters vanish."""
    present, index, counts = np.unique(assigned, return_inverse=True, return_counts=True)
    sums = np.zeros((len(present), probabilities.shape[1]), np.float64)
    np.add.at(sums, index, probabilities)
    means = sums / counts[:, None]
    means /= means.sum(axis=1, keepdims=True)
    return Prototypes(means.astype(np.float32), counts.astype(np.int64))
