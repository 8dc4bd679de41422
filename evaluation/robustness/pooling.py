"""Outcomes of many devices as one figure with an interval: summed per recording, drawn by speaker.

A clip that many devices answer, recorded in many ways, belongs to the one recording that it is of. So more conditions
make a figure more stable, but claim nothing about further speakers. Each outcome counts once: a cell with three seeds
counts three times as much as one with one seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedstill.evaluation.clusters import RESAMPLES, Recordings, bootstrap_interval
from fedstill.evaluation.paired_tests import sign_flip
from fedstill.evaluation.robustness.records import DataSet, DeviceRun, Study, counts_of
from fedstill.evaluation.statistics import signed

FEWER_RESAMPLES = 2000
"""Where no decision hangs on the interval: pictures, and accuracies beside paired differences."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A device of a study."""

    data: DataSet
    device: DeviceRun

    @property
    def clips(self) -> int:
        """How many clips it was tested on."""
        return int(counts_of(self.data.tests[self.device.test].clips).sum())

    def right(self, arm: str) -> int:
        return int(counts_of(self.device.right[arm]).sum())

    def accuracy(self, arm: str) -> float:
        return self.right(arm) / self.clips


@dataclass(frozen=True, slots=True)
class CellKey:
    """One cell of the protocol: its folds and seeds are pooled."""

    experiment: str
    scenario: str
    condition: str
    severity: int
    classes: str
    query: int

    def __str__(self) -> str:
        parts = [self.scenario, self.condition]
        parts += [f"severity {self.severity}"] if self.severity else []
        parts += [f"{self.classes} half"] if self.classes != "all" else []
        parts += [f"{self.query} clips"] if self.query else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean in points with its 95 % interval.

    p: of a paired difference, by sign flips; 1 for an accuracy. devices: with their seeds. recordings: distinct ones.
    """

    points: float
    low: float
    high: float
    p: float
    devices: int
    recordings: int

    @property
    def difference(self) -> str:
        return f"{signed(self.points)} [{signed(self.low)}, {signed(self.high)}]"

    @property
    def accuracy(self) -> str:
        return f"{self.points:.1f} % [{self.low:.1f}, {self.high:.1f}]"


def entries_of(study: Study, keep: Callable[[Entry], bool] = lambda _: True) -> list[Entry]:
    """All devices that ``keep`` wants."""
    every = (Entry(data, device) for data in study.sets for device in data.devices)
    return [entry for entry in every if keep(entry)]


def in_scenario(scenario: str) -> Callable[[Entry], bool]:
    """For ``entries_of``: whether a device is of this scenario."""
    return lambda entry: entry.device.scenario == scenario


def cells_of(entries: Iterable[Entry]) -> dict[CellKey, list[Entry]]:
    """Entries by cell, in the order in which cells first appear."""
    found: dict[CellKey, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[cell_of(entry)].append(entry)
    return dict(found)


def cell_of(entry: Entry) -> CellKey:
    """The cell of a device."""
    one = entry.device
    return CellKey(entry.data.experiment, one.scenario, one.condition, one.severity, one.classes, one.query)


def with_arms(entries: Iterable[Entry], *arms: str) -> list[Entry]:
    """Those that have all of these arms."""
    return [entry for entry in entries if all(arm in entry.device.right for arm in arms)]


def pooled(entries: Sequence[Entry], arm: str, baseline: str | None = None) -> Recordings:
    """Clips right, or the paired difference to ``baseline``, summed by recording over devices and seeds.

    All entries have the arms, and there is at least one.
    """
    sums: dict[tuple[str, int], int] = defaultdict(int)
    counts: dict[tuple[str, int], int] = defaultdict(int)
    sets = {entry.data.experiment: entry.data for entry in entries}
    for entry in entries:
        test, right = entry.data.tests[entry.device.test], counts_of(entry.device.right[arm])
        if baseline is not None:
            right = right - counts_of(entry.device.right[baseline])
        outcomes = zip(test.recordings, right.tolist(), counts_of(test.clips).tolist(), strict=True)
        for recording, value, clips in outcomes:
            sums[entry.data.experiment, recording] += value
            counts[entry.data.experiment, recording] += clips
    units = {experiment: _units(data) for experiment, data in sets.items()}
    owners = [(experiment, units[experiment][recording]) for experiment, recording in sums]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    return Recordings(
        np.array(list(sums.values()), dtype=np.int64),
        np.array([counts[key] for key in sums], dtype=np.int64),
        np.array([numbers[owner] for owner in owners], dtype=np.int64),
        known=all(data.unit == "speaker" for data in sets.values()),
    )


def difference(
    entries: Sequence[Entry], arm: str, baseline: str, resamples: int = RESAMPLES
) -> Figure | None:
    """Paired, over the devices that have both arms; None if there is none."""
    both = with_arms(entries, arm, baseline)
    return _figure(pooled(both, arm, baseline), len(both), resamples, paired=True) if both else None


def accuracy(entries: Sequence[Entry], arm: str, resamples: int = FEWER_RESAMPLES) -> Figure | None:
    """Over the devices that have the arm; None if there is none."""
    mine = with_arms(entries, arm)
    return _figure(pooled(mine, arm), len(mine), resamples, paired=False) if mine else None


def _figure(found: Recordings, devices: int, resamples: int, *, paired: bool) -> Figure:
    rng = np.random.default_rng(0)
    low, high = bootstrap_interval(found.sums, found.counts, rng, found.speakers, resamples)
    p = sign_flip(found.speaker_sums, rng) if paired else 1.0
    mean = 100 * float(found.sums.sum() / found.counts.sum())
    return Figure(mean, low, high, p, devices, len(found.sums))


def _units(data: DataSet) -> Sequence[object]:
    """The independent unit of each recording."""
    return data.recordings if data.unit == "recording" else [speaker for speaker, _ in data.recordings]
