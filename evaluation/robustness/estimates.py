"""How far an accuracy that was estimated without labels is from the true one, and what the choice was worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.common.run_layout import PERSONAL_ARM
from fedstill.evaluation.robustness.pooling import Entry, Figure, difference, entries_of, with_arms
from fedstill.evaluation.robustness.records import Study

FULL = PERSONAL_ARM
MANY_CLIPS = 200
"""With 44 test clips, a perfect estimate is off by 6 points, so its error says little about the estimate."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """One device and seed: the accuracy that was estimated, with its 90 % interval, and the true one; fractions."""

    entry: Entry
    estimate: float
    low: float | None
    high: float | None
    true: float

    @property
    def covered(self) -> bool | None:
        """None if the estimate has no interval."""
        return None if self.low is None or self.high is None else self.low <= self.true <= self.high


@dataclass(frozen=True, slots=True)
class EstimateErrors:
    """Errors over devices, in points; None where no device counts."""

    devices: int
    bias: float | None
    error: float | None
    many: int
    covered: float | None


@dataclass(frozen=True, slots=True)
class ChosenLine:
    """One candidate: how often it was chosen, the gain over the generic student that was expected, and the real one."""

    name: str
    devices: int
    expected: float | None
    real: Figure | None


def estimated(study: Study) -> list[Estimated]:
    """All devices with an estimate and a true accuracy of the arm ``fedstill``."""
    return [
        Estimated(entry, choice.estimate, choice.low, choice.high, entry.accuracy(FULL))
        for entry in with_arms(entries_of(study), FULL)
        if (choice := entry.device.choice) and choice.estimate is not None
    ]


def estimate_errors(found: Sequence[Estimated]) -> EstimateErrors:
    """Bias and coverage over all devices, the mean absolute error over those with many test clips."""
    errors = [100 * (one.estimate - one.true) for one in found]
    many = [abs(error) for one, error in zip(found, errors, strict=True) if one.entry.clips >= MANY_CLIPS]
    covered = [one.covered for one in found if one.covered is not None]
    return EstimateErrors(
        len(found),
        fmean(errors) if errors else None,
        fmean(many) if many else None,
        len(many),
        fmean(covered) if covered else None,
    )


def chosen_lines(study: Study) -> list[ChosenLine]:
    """By candidate, the most frequent first."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in with_arms(entries_of(study), FULL, GENERIC):
        if entry.device.choice:
            groups[entry.device.choice.chosen].append(entry)
    return [
        ChosenLine(name, len(mine), _expected(name, mine), difference(mine, FULL, GENERIC))
        for name, mine in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def _expected(name: str, entries: Sequence[Entry]) -> float | None:
    """The mean estimated gain of the candidate that was chosen, in points."""
    gains = [
        100 * candidate.gain
        for entry in entries
        if entry.device.choice
        for candidate in entry.device.choice.candidates
        if candidate.name == name
    ]
    return fmean(gains) if gains else None
