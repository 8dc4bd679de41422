"""A device's summary as a mixture of what the classes look like: the fit of the shares, and how far off it is.

A summary is the average over clips of (class probabilities, one-hot confidence bin). Its distance from a mixture
counts in units of what chance (few clips) and the speaker explain. The covariance between speakers is estimated from
the public ones and shrunk towards that within speakers, as there are fewer speakers than dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fedstill.cloud_server.distillation.cross_fit import CrossFit
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS, confidence_bins

Floats = npt.NDArray[np.float64]

TEMPERATURES = np.exp(np.linspace(-1.5, 1.5, 31))
BIN_CENTRES = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS
RIDGE = 1e-9
NULL_SPACE = 1e-5
"""Directions with less than this part of the largest variance are left out: the probabilities sum to 1."""
STEPS = 3
"""Of fitting the shares and their covariance in turn."""
KEPT = 0.02
"""Part of the public mix that is left in every estimate."""
LEAST_SHARE = 0.5
"""A speaker who lacks more than this part of a mix cannot play it."""
SUM_WEIGHT = 100.0
"""How strongly the shares are held to sum to 1 within the fit; they are scaled to it afterwards."""


@dataclass(frozen=True)
class Fit:
    """Fitted shares, float (classes,), and the squared distance that is left."""

    shares: Floats
    distance: float
    found: Floats


@dataclass(frozen=True)
class Looks:
    """What a fit says about a device.

    Attributes:
        closer: how much closer the best mixture is than the one with the public shares.
        distance: of the best mixture.
        sureness: mean confidence beyond that of the best mixture.
    """

    closer: float
    distance: float
    sureness: float


class MixtureModel:
    """The classes as public speakers show them to a student that did not know them.

    Args:
        temperature: at which summaries are made; None: the one at which probabilities fit the labels best.

    Attributes:
        speakers: how many there are.
    """

    def __init__(self, cross_fit: CrossFit, temperature: float | None = None) -> None:
        labels, speakers = cross_fit.labels, cross_fit.speakers
        self.temperature = temperature or best_temperature(cross_fit.logits, labels)
        self._logits = cross_fit.logits.astype(np.float64)
        self._labels, self._speakers = labels, speakers
        self.speakers, classes = int(speakers.max()) + 1, self._logits.shape[1]
        self._rows = summary_rows(softmax(self._logits / self.temperature, axis=1))
        self._clips = np.zeros((self.speakers, classes))
        np.add.at(self._clips, (speakers, labels), 1)
        width = self._rows.shape[1]
        sums = np.zeros((self.speakers, classes, width))
        np.add.at(sums, (speakers, labels), self._rows)
        everybody = self._rows.mean(axis=0)
        per_class = self._clips.sum(axis=0)[:, None]
        means = np.where(per_class > 0, sums.sum(axis=0) / np.maximum(per_class, 1), everybody)
        own = sums / np.maximum(self._clips, 1)[:, :, None]
        self._means = np.where(self._clips[:, :, None] > 0, own, means)  # (speakers, classes, width)
        self._within = self._covariances(means)

    def fit(self, found: Floats, clips: int, prior: Floats, without: int = -1) -> Fit:
        """The shares that explain a summary best; ``without`` one speaker."""
        means, shares = self._class_means(without), prior
        for _ in range(STEPS):
            unit = _whitening(self._covariance(0.9 * shares + 0.1 * prior, clips, without))
            shares = _fitted(means, found, unit)
        left = unit @ (found - shares @ means)
        return Fit(shares, float(left @ left), found)

    def distance(self, found: Floats, shares: Floats, clips: int, without: int = -1) -> float:
        """Squared, of a summary from the mixture with these shares."""
        left = found - shares @ self._class_means(without)
        left = _whitening(self._covariance(shares, clips, without)) @ left
        return float(left @ left)

    def draws(self, fit: Fit, clips: int, rng: np.random.Generator, count: int) -> Floats:
        """Shares that the summary allows as well, (count, classes): a parametric bootstrap around the fit."""
        covariance = self._covariance(fit.shares, clips)
        unit, means = _whitening(covariance), self._class_means()
        noise = rng.multivariate_normal(np.zeros(len(covariance)), covariance, count, method="eigh")
        return np.array([_fitted(means, fit.found + one, unit) for one in noise])

    def played_gains(
        self, shares: Floats, prior: Floats, clips: int, rng: np.random.Generator, turns: int
    ) -> Floats:
        """What each speaker gains, who plays a device with these shares and is treated as one, (speakers * turns,).

        The others fit his shares, and the bias that follows from the fit decides his own clips, whose labels are known.
        A speaker without the classes that matter does not play.
        """
        gains = []
        for speaker in range(self.speakers):
            mine = self._speakers == speaker
            wanted = shares * (self._clips[speaker] > 0)
            if wanted.sum() < LEAST_SHARE:
                continue
            wanted = wanted / wanted.sum()
            for _ in range(turns):
                found = self._as_device(speaker, shares, clips, rng)
                bias = self.bias(self.fit(found, clips, prior, speaker).shares, prior)
                gains.append(float(wanted @ self._gain_by_class(bias, mine)))
        return np.array(gains)

    def bias(self, shares: Floats, prior: Floats) -> Floats:
        """What to add to the student's logits where the classes have these shares; 0 for a class without public clips.

        A part of ``prior`` is left in the shares, so that no class is ever ruled out.
        """
        return bias_towards((1 - KEPT) * shares + KEPT * prior, prior, self.temperature)

    def _gain_by_class(self, bias: Floats, mine: npt.NDArray[np.bool_]) -> Floats:
        """How much of each class the bias gets right in addition, (classes,), on some clips."""
        logits, labels = self._logits[mine], self._labels[mine]
        more = (logits + bias).argmax(axis=1) == labels
        before = logits.argmax(axis=1) == labels
        sums = np.bincount(labels, more.astype(float) - before, minlength=self._logits.shape[1])
        result: Floats = sums / np.maximum(np.bincount(labels, minlength=len(sums)), 1)
        return result

    def played(self, prior: Floats, clips: int, rng: np.random.Generator, turns: int) -> list[Looks]:
        """How each speaker looks to the others, ``turns`` times, who plays a device with the shares ``prior``."""
        looks = []
        for speaker in range(self.speakers):
            for _ in range(turns):
                found = self._as_device(speaker, prior, clips, rng)
                looks.append(self.looks(self.fit(found, clips, prior, speaker), clips, prior, speaker))
        return looks

    def looks(self, fit: Fit, clips: int, prior: Floats, without: int = -1) -> Looks:
        """How a summary looks beside the mixture with shares ``prior``, and beside the best one."""
        left = fit.found - fit.shares @ self._class_means(without)
        closer = self.distance(fit.found, prior, clips, without) - fit.distance
        return Looks(closer, fit.distance, float(left[-CONFIDENCE_BINS:] @ BIN_CENTRES))

    def _as_device(self, speaker: int, prior: Floats, clips: int, rng: np.random.Generator) -> Floats:
        """A summary of ``clips`` clips of one speaker, classes drawn by ``prior``."""
        total, means = np.zeros(self._rows.shape[1]), self._class_means(speaker)
        for label, count in enumerate(rng.multinomial(clips, prior / prior.sum())):
            own = np.flatnonzero((self._labels == label) & (self._speakers == speaker))
            if count and len(own):
                total += self._rows[rng.choice(own, count)].sum(axis=0)
            elif count:
                total += count * means[label]
        return total / clips

    def _class_means(self, without: int = -1) -> Floats:
        result: Floats = self._means[np.arange(self.speakers) != without].mean(axis=0)
        return result

    def _covariance(self, shares: Floats, clips: int, without: int = -1) -> Floats:
        """Of a summary of ``clips`` clips of one speaker whose classes have these shares."""
        kept = np.arange(self.speakers) != without
        within = np.einsum("k,kij->ij", shares, self._within) + RIDGE * np.eye(self._rows.shape[1])
        own = np.einsum("k,gkd->gd", shares, self._means[kept])
        few = np.einsum("k,gk->k", shares**2, 1 / np.maximum(self._clips[kept], 1)) / kept.sum()
        between = np.cov(own.T) - np.einsum("k,kij->ij", few, self._within)
        values, vectors = np.linalg.eigh(between)
        between = (vectors * np.maximum(values, 0)) @ vectors.T
        alike = max(float(values.sum()), 0.0) / np.trace(within)
        weight = kept.sum() / (kept.sum() + len(within))
        result: Floats = within / clips + weight * between + (1 - weight) * alike * within
        return result

    def _covariances(self, means: Floats) -> Floats:
        """Within each class, (classes, width, width), the rarer ones shrunk towards what all have in common."""
        centred = self._rows - means[self._labels]
        pooled, width = centred.T @ centred / len(centred), centred.shape[1]
        found = []
        for label in range(len(means)):
            rows = centred[self._labels == label]
            weight = len(rows) / (len(rows) + width)
            own = rows.T @ rows / max(len(rows), 1)
            found.append(weight * own + (1 - weight) * pooled)
        return np.array(found)


def bias_towards(shares: Floats, prior: Floats, temperature: float) -> Floats:
    """The log ratio of class shares to the public ones, for logits of this temperature; 0 for a class without public
    clips, and never below that of ``KEPT``."""
    ratio = np.divide(shares, prior, out=np.ones(len(prior)), where=prior > 0)
    result: Floats = temperature * np.log(np.maximum(ratio, KEPT))
    return result


def summary_rows(probabilities: npt.NDArray[np.floating]) -> Floats:
    """What each clip adds to a summary: float (n, classes + CONFIDENCE_BINS)."""
    sure = np.eye(CONFIDENCE_BINS)[confidence_bins(probabilities)]
    return np.concatenate([np.asarray(probabilities, np.float64), sure], axis=1)


def best_temperature(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> float:
    """Of ``TEMPERATURES``, the one with the least negative log-likelihood (Guo et al. 2017)."""
    rows = np.arange(len(labels))
    exact = np.asarray(logits, np.float64)
    losses = [-np.log(softmax(exact / one, axis=1)[rows, labels] + RIDGE).mean() for one in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def _whitening(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    kept = values > NULL_SPACE * values.max()
    result: Floats = (vectors[:, kept] / np.sqrt(values[kept])).T
    return result


def _fitted(means: Floats, found: Floats, unit: Floats) -> Floats:
    """Shares >= 0 that sum to 1 and bring ``shares @ means`` closest to ``found`` in whitened units."""
    from scipy.optimize import nnls  # takes a third of a second, and most processes fit nothing

    system = unit @ means.T
    weight = SUM_WEIGHT * max(1.0, float(np.abs(system).max()))
    together = np.vstack([system, np.full(len(means), weight)])
    try:
        shares, _ = nnls(together, np.append(unit @ found, weight), maxiter=100 * len(means))
    except (
        RuntimeError
    ):  # no solution in so many steps: one that explains little, so that nothing is decided by it
        shares = np.ones(len(means))
    result: Floats = shares / shares.sum()
    return result
