"""Whether a device's classes are mixed otherwise than the public ones, and how: decided only where it can be known.

A device uploads the mean of its class probabilities and a histogram of its confidences under the generic student. If
only the mix of classes differs from the public clips', these are an average of what the classes look like on public
clips, with the device's shares as weights. So the shares are fitted (as in black-box shift estimation, Lipton et al.
2018, with all of the summary instead of the decided classes). But every speaker differs a little from every other,
and so does every microphone, camera and room. Believing the fit then does harm. Public speakers show by how much: each
of them in turn plays the device. The fit counts only if

- no public speaker with the public mix looks as different from it as the device does (``p_same``),
- the device looks like a mix of classes as far as public speakers do (``p_mixture``), and the student is about as
  sure of it: if not, its sound or its pictures differ from the public ones, and nothing follows about its classes,
- no class has several times its public share: a student that a microphone, room or camera confuses decides for one
  class nearly always, looks sure of it, and that is explained by a mix of little else,
- and public speakers gain who play a device with the fitted shares and are treated as the device would be.

Otherwise nothing is changed, and the device keeps the generic student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincc

from fedstill.cloud_server.distillation.cross_fit import CrossFit
from fedstill.cloud_server.distillation.mixture_fit import KEPT, Fit, Looks, MixtureModel
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS
from fedstill.protos.messages import PrototypeUpload

Floats = npt.NDArray[np.float64]

MOST_P_SAME = 0.05
LEAST_P_MIXTURE = 0.4
"""High, since a device that is not recorded as public clips are must not pass; true mixtures have 0.9 or so."""
OTHER_MIX = 40.0
"""Squared distance: with free shares, a wrong way of recording is soon explained by a strange class mix."""
LEAST_SURENESS = -0.5
"""In standard deviations over public speakers; also high."""
MOST_TIMES = 3.5
"""Its public share, for any class. With a third of the classes each has three times as much, and the fit errs."""
TINY = 1e-9
MOST_CLIPS = 10_000
"""More say no more, since people differ; and a device may claim as many as it likes."""
FEWEST_SPEAKERS = 3
CLIPS_PER_NUMBER = 10
"""Public clips for each number of a summary: with fewer, how these vary together is a guess."""
DRAWS = 40
TURNS = 4
"""How often each public speaker plays the device, with other clips of his."""
GAIN_TURNS = 2
LEAST_GAIN = 0.25
"""The mean gain of public speakers, in its standard deviations over them."""


@dataclass(frozen=True)
class ClassMix:
    """What is known of a device's classes.

    Attributes:
        supported: whether the device's student may use it.
        reason: in one line, why it may or may not.
        shares: of the classes; the public ones if nothing is known.
        present: the classes that the device may have.
        class_bias: to add to the student's logits; zeros if nothing is known.
        gain: accuracy that public speakers gained in the device's place, from 0 to 1.
    """

    supported: bool
    reason: str
    shares: tuple[float, ...]
    present: tuple[bool, ...]
    class_bias: tuple[float, ...]
    gain: float = 0.0

    @property
    def bias(self) -> npt.NDArray[np.float32]:
        """``class_bias`` as float32 (classes,)."""
        return np.array(self.class_bias, np.float32)


def unknown_mix(public_prior: npt.NDArray[np.floating], reason: str) -> ClassMix:
    """Nothing is known: the public shares, every class present, no bias."""
    shares = tuple(float(share) for share in public_prior)
    return ClassMix(False, reason, shares, (True,) * len(shares), (0.0,) * len(shares))


class ClassMixes:
    """The judge of devices' summaries, for one seed's generic student.

    Args:
        cross_fit: what the student says of public speakers that it never heard; None if there are too few speakers.
        public_prior: float (classes,), shares of the classes among the public clips.
        threshold: a class may be present if its share may reach this part of its public share.
        tested: False: every fit is believed, for comparison only.
        temperature: at which summaries are made; None: the one that makes the student's probabilities honest.

    Attributes:
        lacking: why no device can be judged, so that none need be asked; empty if they can.
        temperature: divides the student's logits before devices summarise them.
    """

    def __init__(
        self,
        cross_fit: CrossFit | None,
        public_prior: npt.NDArray[np.floating],
        threshold: float,
        tested: bool = True,
        temperature: float | None = None,
    ) -> None:
        self._prior, self._threshold = np.asarray(public_prior, np.float64), threshold
        self._tested = tested
        self.lacking = _lacking(cross_fit, tested)
        self._model = MixtureModel(cross_fit, temperature) if cross_fit and not self.lacking else None
        self.temperature = self._model.temperature if self._model else 1.0
        self._played = lru_cache(maxsize=64)(self._play)

    def judge(self, summary: PrototypeUpload, rng: np.random.Generator) -> ClassMix:
        """Decide from a summary of kind ``histogram`` that was made at ``temperature``.

        Args:
            rng: of the draws that say how uncertain the shares are.
        """
        model = self._model
        if model is None:
            return self._unknown(self.lacking)
        if not len(summary.confidence):
            return self._unknown("a summary without confidences cannot show how the device records")
        found, clips = _found(summary)
        fit = model.fit(found, clips, self._prior)
        drawn = model.draws(fit, clips, rng, DRAWS)
        if not self._tested:
            return self._mix(model, drawn, "not tested", 0.0)
        if doubt := self._doubt(model, fit, clips):
            return self._unknown(doubt)
        gains = model.played_gains(fit.shares, self._prior, clips, np.random.default_rng(clips), GAIN_TURNS)
        if not len(gains) or not gains.mean() > LEAST_GAIN * gains.std():
            return self._unknown("other classes than the public ones, but no sure gain from knowing them")
        return self._mix(model, drawn, "other classes than the public ones", float(gains.mean()))

    def distance(self, summary: PrototypeUpload) -> float | None:
        """How far the summary is from what public speakers say, who have the public class mix, or another one at the
        price of ``OTHER_MIX``; None if that cannot be said."""
        if self._model is None or not len(summary.confidence):
            return None
        found, clips = _found(summary)
        usual = self._model.distance(found, self._prior, clips)
        return min(usual, self._model.fit(found, clips, self._prior).distance + OTHER_MIX)

    def _mix(self, model: MixtureModel, drawn: Floats, reason: str, gain: float) -> ClassMix:
        """A mix that counts, from the shares that the summary allows, (draws, classes)."""
        mean = drawn.mean(axis=0)
        present = (self._prior > 0) & (drawn.max(axis=0) >= self._threshold * self._prior)
        return ClassMix(
            True,
            reason,
            tuple(((1 - KEPT) * mean + KEPT * self._prior).tolist()),
            tuple(present.tolist()),
            tuple(model.bias(mean, self._prior).tolist()),
            gain,
        )

    def _doubt(self, model: MixtureModel, fit: Fit, clips: int) -> str:
        """Why the summary does not show other classes than the public ones; empty if it does."""
        device, others = model.looks(fit, clips, self._prior), self._played(clips)
        sureness = [one.sureness for one in others]
        less_sure = (device.sureness - np.mean(sureness)) / max(float(np.std(sureness)), TINY)
        if less_sure < LEAST_SURENESS:
            return (
                f"the student is less sure here than of public speakers ({less_sure:.1f} deviations): another "
                "microphone, room or camera, which hides the classes"
            )
        p_mixture = upper_tail([one.distance for one in others], device.distance)
        if p_mixture < LEAST_P_MIXTURE:
            return (
                f"no mix of classes explains what the student says here (p {p_mixture:.3f}): another microphone, "
                "room or camera, which hides them"
            )
        most = int(np.argmax(fit.shares - MOST_TIMES * self._prior))
        if fit.shares[most] > MOST_TIMES * self._prior[most]:
            return (
                f"one class would have {100 * fit.shares[most]:.0f} % of the clips: rather another microphone, room or "
                "camera, which confuses the student"
            )
        p_same = upper_tail([one.closer for one in others], device.closer)
        return f"the device may have the public classes (p {p_same:.3f})" if p_same > MOST_P_SAME else ""

    def _unknown(self, reason: str) -> ClassMix:
        return unknown_mix(self._prior, reason)

    def _play(self, clips: int) -> list[Looks]:
        """How public speakers look who have the public mix and so many clips."""
        assert self._model is not None
        return self._model.played(self._prior, clips, np.random.default_rng(clips), TURNS)


def _found(summary: PrototypeUpload) -> tuple[Floats, int]:
    """The summary as one row, and how many clips it counts for."""
    row = np.concatenate([summary.probabilities[0], summary.confidence]).astype(np.float64)
    return row, min(int(summary.counts.sum()), MOST_CLIPS)


def _lacking(cross_fit: CrossFit | None, tested: bool) -> str:
    """Why devices cannot be compared with public speakers; empty if they can."""
    if cross_fit is None or cross_fit.speakers.max() + 1 < FEWEST_SPEAKERS:
        return f"fewer than {FEWEST_SPEAKERS} public speakers: nothing to compare with"
    clips, classes = cross_fit.logits.shape
    if not np.isfinite(cross_fit.logits).all():
        return "a student of the cross-fit diverged: nothing to compare with"
    if tested and clips < (needed := CLIPS_PER_NUMBER * (classes + CONFIDENCE_BINS)):
        return f"{clips} public clips, and {needed} are needed to know how speakers differ"
    return ""


def upper_tail(sample: Sequence[float], value: float) -> float:
    """The chance of at least ``value`` under a gamma distribution with the mean and variance of ``sample``."""
    mean, variance = float(np.mean(sample)), float(np.var(sample, ddof=1))
    if variance <= 0 or mean <= 0:
        return float(value <= mean)
    return float(gammaincc(mean**2 / variance, max(0.0, value) / (variance / mean)))
