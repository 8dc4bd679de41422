"""From finished run folders to the counts of one data set: folds and seeds side by side, each device with its cell.

Runs that do not belong together are refused: figures over a mixture would look fine and mean nothing.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.common.dataclass_codec import from_plain
from fedstill.common.run_layout import DEVICES_FILE, PERSONAL_ARM
from fedstill.evaluation.results import (
    ChoiceRow,
    ClipRow,
    Results,
    ResultsError,
    check_agreement,
    read_clips,
    read_results,
)
from fedstill.evaluation.robustness.records import (
    Choice,
    ClipSet,
    DataSet,
    DeviceRun,
    digits,
    folds_left_out,
)

FREE = {("robustness", "fold"), ("run", "seeds"), ("run", "first_seed")}
"""What may differ between the runs of one data set."""

LAST_ASKED = 2
"""The last round in which a personal student's job asks for a summary; the answer to the test is of the round after the
last outer epoch. With fewer of these than three it is counted, too: rather too much than too little."""


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """The part of a line of ``devices.json`` that statistics need."""

    client: int
    scenario: str
    condition: str
    severity: int
    classes: str
    query: int
    fold: int
    family: str


@dataclass
class _Numbers:
    """Recordings and tests, numbered when they first appear."""

    recordings: dict[tuple[str, str], int] = field(default_factory=dict)
    tests: dict[ClipSet, int] = field(default_factory=dict)

    def device(self, row: ClipRow) -> tuple[int, dict[str, str]]:
        """The number of the test, and by arm the digits of what is right of each of its recordings."""
        if not row.groups or not row.speakers:
            raise ResultsError(f"client {row.client}: its clips name no recordings or speakers: run it again")
        owners = list(zip(row.speakers, row.groups, strict=True))
        order = {owner: place for place, owner in enumerate(dict.fromkeys(owners))}
        places = np.array([order[owner] for owner in owners])
        numbers = tuple(self.recordings.setdefault(owner, len(self.recordings)) for owner in order)
        test = ClipSet(numbers, digits(np.bincount(places)))
        right = {
            arm: digits(np.bincount(places[np.array([bit == "1" for bit in bits])], minlength=len(order)))
            for arm, bits in row.correct.items()
        }
        return self.tests.setdefault(test, len(self.tests)), right


def read_set(run_dirs: Sequence[Path], seconds: Mapping[str, float] | None = None) -> DataSet:
    """All runs of one experiment, a fold or a seed of a fold each.

    Args:
        run_dirs: finished runs.
        seconds: what the parts of the work took; by default what the runs say.

    Raises:
        ResultsError: a folder cannot be read, is of another experiment, or repeats a fold and seed.
    """
    if not run_dirs:
        raise ResultsError("no run to read: give at least one")
    runs = [(folder, read_results(folder), read_devices(folder)) for folder in run_dirs]
    _, first, lines = runs[0]
    numbers = _Numbers()
    devices: list[DeviceRun] = []
    seen: dict[tuple[int, int], Path] = {}
    for folder, results, cells in runs:
        _require_alike(run_dirs[0], first, folder, results)
        fold = next(iter(cells.values())).fold
        for seed in results.seeds:
            if (fold, seed) in seen:
                raise ResultsError(f"{folder}: fold {fold} with seed {seed} is in {seen[fold, seed]}, too")
            seen[fold, seed] = folder
        devices += _devices_of(folder, results, cells, numbers)
    settings = first.config["robustness"]
    return DataSet(
        experiment=first.experiment,
        dataset=first.dataset,
        synthetic=first.synthetic,
        class_names=first.class_names,
        parameters=first.parameters,
        family=next(iter(lines.values())).family,
        middle=settings["middle"],
        fold_count=settings["folds"],
        folds=tuple(sorted({fold for fold, _ in seen})),
        seeds=tuple(sorted({device.seed for device in devices})),
        recordings=tuple(numbers.recordings),
        tests=tuple(numbers.tests),
        devices=tuple(devices),
        git=tuple(dict.fromkeys(results.git for _, results, _ in runs)),
        hardware=tuple(dict.fromkeys(results.hardware for _, results, _ in runs)),
        seconds=dict(seconds or _summed(results.seconds for _, results, _ in runs)),
        left_out=tuple(_left_out(settings["folds"], seen, [results for _, results, _ in runs])),
    )


def read_devices(run_dir: Path) -> dict[int, DeviceLine]:
    """``devices.json`` by client. Raises ResultsError if there is none."""
    path = run_dir / DEVICES_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        known = DeviceLine.__slots__
        rows = [from_plain(DeviceLine, {key: row[key] for key in known}) for row in plain]
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file: this is no run of a robustness experiment") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: is damaged ({error}): run the experiment again") from error
    if not rows or len({row.fold for row in rows}) > 1:
        raise ResultsError(f"{path}: needs devices of one fold: run the experiment again")
    return {row.client: row for row in rows}


def _devices_of(
    folder: Path, results: Results, cells: Mapping[int, DeviceLine], numbers: _Numbers
) -> Iterator[DeviceRun]:
    clips = read_clips(folder)
    check_agreement(results, clips)
    scenarios = sorted({row.scenario for row in clips})
    if len(scenarios) != 1:
        raise ResultsError(
            f"{folder}: needs clips of one of run.scenarios, has {', '.join(scenarios) or 'none'}"
        )
    choices = {(row.client, row.seed): row for row in results.choices if row.arm == PERSONAL_ARM}
    up_bytes: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    largest: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for one in results.traffic:
        up_bytes[one.client, one.seed][one.arm] += one.up_bytes
        if one.round <= LAST_ASKED:
            known = largest[one.client, one.seed]
            known[one.arm] = max(known.get(one.arm, 0), one.up_bytes)
    for row in clips:
        if row.client not in cells:
            raise ResultsError(f"{folder}: client {row.client} is not in {DEVICES_FILE}: run it again")
        if GENERIC not in row.correct:
            raise ResultsError(f"{folder}: client {row.client} lacks {GENERIC}, to which all is compared")
        cell, key = cells[row.client], (row.client, row.seed)
        test, right = numbers.device(row)
        yield DeviceRun(
            fold=cell.fold,
            client=row.client,
            seed=row.seed,
            scenario=cell.scenario,
            condition=cell.condition,
            severity=cell.severity,
            classes=cell.classes,
            query=cell.query,
            test=test,
            right=right,
            up_bytes=dict(up_bytes[key]),
            largest_bytes=dict(largest[key]),
            choice=_choice(choices[key]) if key in choices else None,
        )


def _choice(row: ChoiceRow) -> Choice:
    return Choice(row.chosen, row.reason, row.estimate, row.low, row.high, row.candidates)


def _require_alike(first_dir: Path, first: Results, folder: Path, results: Results) -> None:
    """Raise ResultsError unless both are of one experiment."""
    if "robustness" not in results.config:
        raise ResultsError(f"{folder}: is no run of a robustness experiment")
    if results.experiment != first.experiment:
        raise ResultsError(f"{folder}: is a run of {results.experiment}, {first_dir} of {first.experiment}")
    for key, mine, theirs in _differing(first.config, results.config):
        if key not in FREE:
            raise ResultsError(f"{folder}: {'.'.join(key)} is {theirs!r}, in {first_dir} it is {mine!r}")


def _differing(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], where: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    for key in dict.fromkeys((*mine, *theirs)):
        one, other = mine.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differing(one, other, (*where, key))
        elif one != other:
            yield (*where, key), one, other


def _left_out(
    fold_count: int, seen: Mapping[tuple[int, int], Path], runs: Sequence[Results]
) -> Iterator[str]:
    yield from folds_left_out(fold_count, {fold for fold, _ in seen})
    for results in runs:
        for row in results.failures:
            fold = results.config["robustness"]["fold"]
            yield f"fold {fold}, client {row.client}, seed {row.seed}, {row.arm}: {row.reason}"


def _summed(parts: Iterator[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
