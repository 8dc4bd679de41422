"""How sure a student is of a set of clips, as a histogram: devices make it, the cloud compares it. numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CONFIDENCE_BINS = 8
"""Of the histogram, from a guess to certainty."""


def confidence_bins(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bin of each row of (n, classes) probabilities by its largest one: 0 at 1 / classes, the last one at 1."""
    least = 1 / probabilities.shape[1]
    sureness = (probabilities.max(axis=1) - least) / (1 - least) if least < 1 else np.ones(len(probabilities))
    return np.clip((sureness * CONFIDENCE_BINS).astype(np.int64), 0, CONFIDENCE_BINS - 1)


def mean_confidence(histogram: npt.NDArray[np.floating]) -> float:
    """Of the clips behind a histogram of confidences, from 0 (guesses) to 1."""
    return float(histogram @ ((np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS))


def confidence_histogram(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Share of the clips in each bin, float32 (CONFIDENCE_BINS,)."""
    counts = np.bincount(confidence_bins(probabilities), minlength=CONFIDENCE_BINS)
    return (counts / len(probabilities)).astype(np.float32)
