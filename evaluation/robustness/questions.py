"""The questions that were asked before the test folds were touched: the contract and the four planned comparisons.

docs/decisions/027-robustness-protocol.md says what is compared and why. Nothing here may be changed once the test folds
have been run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.common.run_layout import PERSONAL_ARM
from fedstill.evaluation.paired_tests import SIGNIFICANT, holm, sign_flip
from fedstill.evaluation.robustness.pooling import (
    CellKey,
    Entry,
    Figure,
    cells_of,
    difference,
    entries_of,
    pooled,
    with_arms,
)
from fedstill.evaluation.robustness.records import Study

FULL = PERSONAL_ARM
OTHER_CARD, TEACHER_ADAPTED, PRIOR = "other_card", "teacher_own_statistics", "prior_corrected"

MARGIN = 1.0
"""Points that the contract allows an arm to be worse, as far as the data can tell."""
UNSHIFTED = ("D", "G")
"""Scenarios whose devices record as the public clips were recorded."""


@dataclass(frozen=True, slots=True)
class ScenarioLine:
    """The contract for one scenario, of one data set or pooled over all."""

    scenario: str
    experiment: str
    figure: Figure

    @property
    def kept(self) -> bool:
        return self.figure.low >= -MARGIN


@dataclass(frozen=True, slots=True)
class CellLine:
    """One cell; ``holm``: the p value adjusted for all cells."""

    key: CellKey
    figure: Figure
    holm: float

    @property
    def harmed(self) -> bool:
        return self.figure.points < 0 and self.holm < SIGNIFICANT


@dataclass(frozen=True, slots=True)
class Contract:
    """The contract of the whole study; scenarios pooled over sets first, then set by set."""

    scenarios: tuple[ScenarioLine, ...]
    by_set: tuple[ScenarioLine, ...]
    cells: tuple[CellLine, ...]

    @property
    def harmed(self) -> tuple[CellLine, ...]:
        return tuple(line for line in self.cells if line.harmed)

    @property
    def kept(self) -> bool:
        """The pooled scenarios and the single cells decide; the sets one by one are shown beside them."""
        return all(line.kept for line in self.scenarios) and not self.harmed


@dataclass(frozen=True, slots=True)
class Planned:
    """One planned comparison; figure None if an arm was not run. ``holm``: adjusted for all four."""

    question: str
    where: str
    arm: str
    baseline: str
    figure: Figure | None
    p: float | None
    holm: float | None


def contract(study: Study, arm: str = FULL) -> Contract:
    """Whether ``arm`` is ever worse than the robust generic student."""
    both = with_arms(entries_of(study), arm, GENERIC)
    cells = {
        key: figure for key, mine in cells_of(both).items() if (figure := difference(mine, arm, GENERIC))
    }
    adjusted = holm([figure.p for figure in cells.values()])
    lines = [CellLine(key, figure, p) for (key, figure), p in zip(cells.items(), adjusted, strict=True)]
    by_set = []
    for data in study.sets:
        mine = [entry for entry in both if entry.data is data]
        by_set += list(_scenario_lines(mine, data.experiment, arm))
    return Contract(tuple(_scenario_lines(both, "all sets", arm)), tuple(by_set), tuple(lines))


def planned(study: Study) -> tuple[Planned, ...]:
    """The four comparisons, adjusted for all four even if an arm was not run."""
    asked = [
        _asked(study, "is it worth having", "A at the middle severity", FULL, GENERIC, at_middle),
        _asked(
            study, "is it this device's card", "A at the middle severity", FULL, OTHER_CARD, at_middle
        ),
        _asked(
            study, "is it more than new statistics", "all shifted cells that have both", FULL,
            TEACHER_ADAPTED, shifted,
        ),
        _no_harm(study),
    ]  # fmt: skip
    adjusted = holm([1.0 if one.p is None else one.p for one in asked])
    return tuple(
        replace(one, holm=None if one.p is None else p) for one, p in zip(asked, adjusted, strict=True)
    )


def at_middle(entry: Entry) -> bool:
    """Capture shift at the middle severity, with all classes."""
    return entry.device.scenario == "A" and entry.device.severity == entry.data.middle


def shifted(entry: Entry) -> bool:
    """Records otherwise than the public clips."""
    return entry.device.scenario not in UNSHIFTED


def unshifted(entry: Entry) -> bool:
    """Records as the public clips do."""
    return not shifted(entry)


def not_worse(entries: Sequence[Entry], arm: str, baseline: str, margin: float = MARGIN) -> float:
    """p value of the hypothesis that ``arm`` is worse than ``baseline`` by ``margin`` points or more.

    Sign flips of the difference from that margin; 1 if it is not on the good side.
    """
    found = pooled(entries, arm, baseline)
    from_margin = np.zeros(found.speaker_count, dtype=np.int64)
    np.add.at(from_margin, found.speakers, 100 * found.sums + round(margin) * found.counts)
    return sign_flip(from_margin, np.random.default_rng(0)) if from_margin.sum() > 0 else 1.0


def _asked(
    study: Study, question: str, where: str, arm: str, baseline: str, keep: Callable[[Entry], bool]
) -> Planned:
    figure = difference(entries_of(study, keep), arm, baseline)
    return Planned(question, where, arm, baseline, figure, figure.p if figure else None, None)


def _no_harm(study: Study) -> Planned:
    entries = with_arms(entries_of(study, unshifted), FULL, GENERIC)
    figure = difference(entries, FULL, GENERIC)
    p = not_worse(entries, FULL, GENERIC) if entries else None
    question = f"does it harm, by {MARGIN:g} point or more"
    return Planned(question, "D and G", FULL, GENERIC, figure, p, None)


def _scenario_lines(entries: Sequence[Entry], experiment: str, arm: str) -> Iterator[ScenarioLine]:
    for scenario in sorted({entry.device.scenario for entry in entries}):
        mine = [entry for entry in entries if entry.device.scenario == scenario]
        figure = difference(mine, arm, GENERIC)
        if figure is not None:
            yield ScenarioLine(scenario, experiment, figure)
