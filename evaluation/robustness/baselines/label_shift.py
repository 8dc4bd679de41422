"""Label shift: the classes of a device are mixed otherwise, and nothing else differs. EM and BBSE, without any guard.

Both learn the device's class shares from what a network says of its unlabelled clips, and add the log ratio of new and
old shares to the logits. EM repeats: correct the posteriors for the shares, take their mean as the new shares (Saerens
et al. 2002). BBSE solves for the shares that, sent through the confusion matrix of labelled public clips, give the
device's decisions (Lipton et al. 2018, arXiv 1802.03916; hard decisions). Posteriors are calibrated by a temperature
first, since EM needs honest ones (Alexandari et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear
from scipy.special import softmax

from fedstill.cloud_server.distillation.mixture_fit import best_temperature

Floats = npt.NDArray[np.float64]

EM_STEPS, EM_MOVED = 200, 1e-6
LEAST_RATIO = 1e-6
"""Of a new share to the old one: for a class that is ruled out, so that its bias is finite."""


@dataclass(frozen=True)
class LabelShift:
    """What a method believes of a device.

    Attributes:
        shares: float64 (classes,), of the device's classes; they sum to 1.
        bias: float32 (classes,), to add to the network's logits.
    """

    shares: Floats
    bias: npt.NDArray[np.float32]


def em(
    public_logits: npt.NDArray[np.floating],
    public_labels: npt.NDArray[np.int64],
    query_logits: npt.NDArray[np.floating],
) -> LabelShift:
    """Saerens' EM.

    Args:
        public_logits: (N, classes), of labelled public clips that the network was not trained on.
        public_labels: (N,); how often each class occurs among them is its old share.
        query_logits: (n, classes), of the device's unlabelled clips.
    """
    temperature = best_temperature(public_logits, public_labels)
    prior = class_shares(public_labels, public_logits.shape[1])
    posteriors = softmax(np.asarray(query_logits, np.float64) / temperature, axis=1)
    return _shift(em_shares(posteriors, prior), prior, temperature)


def bbse(
    public_logits: npt.NDArray[np.floating],
    public_labels: npt.NDArray[np.int64],
    query_logits: npt.NDArray[np.floating],
) -> LabelShift:
    """Black-box shift estimation; the arguments are those of ``em``.

    Ratios below 0 are ruled out within the fit, which also copes with a confusion matrix that has no inverse. If no
    ratio explains the decisions, the shares are the public ones.
    """
    classes = public_logits.shape[1]
    prior = class_shares(public_labels, classes)
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (public_logits.argmax(axis=1), public_labels), 1 / len(public_labels))
    decided = class_shares(query_logits.argmax(axis=1), classes)
    ratio = lsq_linear(confusion, decided, bounds=(0, np.inf), method="bvls").x
    shares = ratio * prior
    shares = shares / shares.sum() if shares.sum() > 0 else prior
    return _shift(shares, prior, best_temperature(public_logits, public_labels))


def em_shares(posteriors: Floats, prior: Floats, prior_clips: float = 0.0) -> Floats:
    """The class shares behind posteriors that hold under ``prior``, (n, classes), by EM.

    Args:
        prior_clips: how many clips more the prior counts as; 0 in the paper.
    """
    shares = prior
    for _ in range(EM_STEPS):
        corrected = posteriors * np.divide(shares, prior, out=np.zeros_like(prior), where=prior > 0)
        corrected /= corrected.sum(axis=1, keepdims=True)
        updated = (corrected.sum(axis=0) + prior_clips * prior) / (len(posteriors) + prior_clips)
        moved, shares = np.abs(updated - shares).max(), updated
        if moved < EM_MOVED:
            break
    return shares


def class_shares(labels: npt.NDArray[np.int64], classes: int) -> Floats:
    """How much of ``labels`` each class makes up, float64 (classes,)."""
    result: Floats = np.bincount(labels, minlength=classes) / len(labels)
    return result


def _shift(shares: Floats, prior: Floats, temperature: float) -> LabelShift:
    """With the bias that decides by the calibrated posteriors; 0 for a class without public clips."""
    ratio = np.divide(shares, prior, out=np.ones_like(shares), where=prior > 0)
    bias = temperature * np.log(np.maximum(ratio, LEAST_RATIO))
    return LabelShift(shares, bias.astype(np.float32))
