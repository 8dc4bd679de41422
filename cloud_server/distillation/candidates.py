"""The students that a device could get, and the choice between them by labelled clips that sound and look like its own.

Every candidate is trained once without some public speakers. These, rendered to the device's capture card, are what a
device cannot give: labelled clips under its conditions. A candidate is taken only if it is better there than the
generic student by more than two standard errors. Then it is trained again on all speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.class_mix import ClassMix
from fedstill.cloud_server.distillation.mixture_fit import bias_towards

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

LEAST_GAIN = 0.005
"""Of accuracy: below, a difference is not worth a training."""
LEEWAY = 0.02
"""Of mean confidence; what chance explains."""
ERRORS = 2.0
"""How many standard errors better than the generic student a candidate must be."""


@dataclass(frozen=True)
class Training:
    """How a candidate is trained further.

    Attributes:
        rendered: on clips as the device would have recorded them.
        selected: on the classes alone that the device may have.
        similar: on the clips whose probabilities are most like those of the device's prototypes (Algorithm 7).
    """

    rendered: bool = False
    selected: bool = False
    similar: bool = False


GENERIC_TRAINING = Training()


@dataclass(frozen=True)
class Candidate:
    """A training, and whether the class bias of the device's mix is added afterwards."""

    training: Training
    prior: bool = False

    @property
    def name(self) -> str:
        """ "rendered+selected+prior", for instance; "generic" for the student that nobody's data shaped."""
        parts = {
            "rendered": self.training.rendered,
            "selected": self.training.selected,
            "similar": self.training.similar,
            "prior": self.prior,
        }
        trained = self.training != GENERIC_TRAINING
        return "+".join([*([] if trained else ["generic"]), *(part for part, has in parts.items() if has)])


GENERIC_CANDIDATE = Candidate(GENERIC_TRAINING)
OWN_STATISTICS = "own_statistics"
"""Is added to the name of a candidate that takes batch norm statistics of its device's clips."""


@dataclass(frozen=True)
class Estimate:
    """What a candidate would be worth: ``gain`` over the generic student and its standard error, from -1 to 1."""

    name: str
    gain: float
    error: float


@dataclass(frozen=True)
class Choice:
    """Which student a device gets, and why.

    Attributes:
        chosen: the candidate's name; with ``OWN_STATISTICS``, "rendered+own_statistics" for instance.
        reason: one line.
        candidates: what each is worth, the generic one not named.
        estimate: the accuracy that is expected on the device, from 0 to 1; None if nobody can tell.
        low, high: its 90 % interval, for a device that one person uses.
        capture: how the device's recordings differ: "sound and pictures", or empty if no different world is believed.
        prototypes: how many the device was asked for, and gave, since they may pay; their bytes are in the traffic
            ledger, apart from the summary's.
        cohort: with whose members the device shares its student; empty if it is its own, or the generic one.
    """

    chosen: str = GENERIC_CANDIDATE.name
    reason: str = ""
    candidates: tuple[Estimate, ...] = ()
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    capture: str = ""
    prototypes: int = 0
    cohort: str = ""

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """(estimate, low, high), from 0 to 1; None if nobody can tell."""
        if self.estimate is None or self.low is None or self.high is None:
            return None
        told = 0 <= self.low <= self.estimate <= self.high <= 1  # not if it is no number
        return (self.estimate, self.low, self.high) if told else None


def candidates_for(rendered: bool, mix: ClassMix, *, prototypes: bool = False) -> tuple[Candidate, ...]:
    """All but the generic one that make sense for a device.

    Args:
        rendered: whether the device records otherwise than the public clips.
        prototypes: whether it can be asked for some. They pay only where its classes are others.
    """
    trainings = [GENERIC_TRAINING]
    if rendered:
        trainings.append(Training(rendered=True))
    if mix.supported and not all(mix.present):
        trainings += [Training(one.rendered, selected=True) for one in trainings]
        if prototypes:
            trainings.append(Training(rendered, similar=True))
    priors = (False, True) if mix.supported else (False,)
    found = [Candidate(training, prior) for training in trainings for prior in priors]
    # without its bias, a student of some classes alone still decides for the others
    return tuple(
        one for one in found if one != GENERIC_CANDIDATE and (one.prior or not one.training.selected)
    )


def bias_of(mix: ClassMix, prior: npt.NDArray[np.floating], temperature: float) -> npt.NDArray[np.float32]:
    """What to add to the logits of a student with this temperature, float32 (classes,); 0 without a supported mix."""
    if not mix.supported:
        return np.zeros(len(mix.shares), np.float32)
    return bias_towards(np.array(mix.shares), np.asarray(prior, np.float64), temperature).astype(np.float32)


def right(logits: npt.NDArray[np.floating], bias: npt.NDArray[np.floating], labels: Positions) -> Floats:
    """1.0 for each clip that is decided as labelled, else 0.0."""
    decided: Floats = ((logits + bias).argmax(axis=1) == labels).astype(np.float64)
    return decided


def class_weights(labels: Positions, shares: Sequence[float] | npt.NDArray[np.floating]) -> Floats:
    """A weight for each clip, so that classes count by ``shares``; together 1. Classes without clips are left out."""
    counts = np.bincount(labels, minlength=len(shares))
    per_clip = np.divide(shares, counts, out=np.zeros(len(counts)), where=counts > 0)
    weights: Floats = per_clip[labels]
    return np.asarray(weights / max(weights.sum(), 1e-12))


def estimated(
    name: str, gains: Floats, labels: Positions, recordings: Positions, shares: Sequence[float]
) -> Estimate:
    """A candidate's gain from its clip-by-clip differences to the generic student, -1, 0 or 1 each.

    Args:
        recordings: the recording of each clip; the error counts these, for clips of one are not independent.
        shares: of the classes on the device.
    """
    weighted = class_weights(labels, shares) * gains
    gain = float(weighted.sum())
    centred = weighted - class_weights(labels, shares) * gain
    error = float(np.sqrt(np.square(np.bincount(recordings, centred)).sum()))
    return Estimate(name, gain, error)


def best_of(estimates: Sequence[Estimate], tested: bool = True) -> Estimate | None:
    """The one with the largest gain of those whose gain is sure enough; None: the generic student.

    Args:
        tested: False: every gain is believed; for comparison only.
    """
    sure = [one for one in estimates if not tested or one.gain > max(LEAST_GAIN, ERRORS * one.error)]
    return max(sure, key=lambda one: one.gain, default=None)


def doubted(choice: Choice, reason: str) -> Choice:
    """The generic student, after all. What to expect of it, nobody can tell: the clips rendered for the device are not
    like its own."""
    return replace(
        choice, chosen=GENERIC_CANDIDATE.name, reason=reason, estimate=None, low=None, high=None, cohort=""
    )


def keeps_promise(promised: float, found: float, left: float = 1.0) -> bool:
    """Whether a trained student is about as much surer of the device's clips as it is of those rendered for it.

    Nobody on the device knows what is right. But a student for another microphone than the device's is not surer there.

    Args:
        promised: mean confidence of the checked student over the generic one's, on rendered clips of unknown speakers.
        found: the same difference on the device's clips.
        left: how much surer the generic student can become of the device's clips, as a part of how much it can of
            those others: where it is sure already, less must be found.
    """
    # half as much surer at least, or twice as unsure at most
    wanted = min(promised / 2, 2 * promised) - LEEWAY
    return found >= (wanted * min(left, 1.0) if wanted > 0 else wanted)


def expected_accuracy(
    right_by_clip: Floats,
    labels: Positions,
    speakers: Positions,
    shares: Sequence[float],
    gain: float,
    error: float,
    surer: float = 0.0,
) -> tuple[float, float, float]:
    """(accuracy, low, high): what to expect of another speaker, with a 90 % interval.

    Args:
        right_by_clip: of the generic student on clips of speakers whom it did not know, under the device's conditions.
        gain, error: of the chosen candidate over it. It is expected to mend the same part of the errors on the device.
        surer: how much more confident the generic student is of the device's clips than of these, in accuracy. Where
            it is less sure, it is right less often (difference of confidences, Guillory et al. 2021).
    """
    own = [
        float(class_weights(labels[mine], shares) @ right_by_clip[mine])
        for one in range(int(speakers.max()) + 1)
        if (mine := speakers == one).any()
    ]
    generic = float(class_weights(labels, shares) @ right_by_clip)
    left = np.clip((1 - generic - gain) / max(1 - generic, 1e-12), 0, 1) if gain else 1.0
    mean = 1 - (1 - np.clip(generic + surer, 0, 1)) * left
    spread = np.var(own, ddof=1) if len(own) > 1 else 0.25
    half = 1.645 * float(np.sqrt(spread * (1 + 1 / len(own)) + error**2))
    return float(mean), float(np.clip(mean - half, 0, 1)), float(np.clip(mean + half, 0, 1))
