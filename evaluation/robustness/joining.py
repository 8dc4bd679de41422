"""Two studies of the same experiments as one: more seeds, run later and perhaps of fewer cells, beside those before.

Only the counts of the first one are needed, so its runs may be gone. A device and seed that both have is refused: which
one counts would be a choice after the fact.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from fedstill.evaluation.results import ResultsError
from fedstill.evaluation.robustness.pooling import CellKey, Entry, cell_of
from fedstill.evaluation.robustness.records import ClipSet, DataSet, DeviceRun, Study, folds_left_out

SAME = ("dataset", "synthetic", "class_names", "parameters", "family", "middle", "fold_count")
"""Of two data sets of one experiment."""


def joined(first: Study, second: Study) -> Study:
    """Both, under the name of the first one; its command names both.

    Raises:
        ResultsError: they are of other experiments, of other data, or share a device and seed.
    """
    others = {data.experiment: data for data in second.sets}
    if {data.experiment for data in first.sets} != set(others):
        mine, theirs = (", ".join(data.experiment for data in study.sets) for study in (first, second))
        raise ResultsError(
            f"one study is of {mine}, the other of {theirs}: join studies of the same experiments"
        )
    sets = tuple(_joined_set(data, others[data.experiment]) for data in first.sets)
    cpus = dict.fromkeys((first.cpu, second.cpu))
    return replace(
        first, command=f"{first.command}`, with `{second.command}", cpu=" and ".join(cpus), sets=sets
    )


def _joined_set(first: DataSet, second: DataSet) -> DataSet:
    for name in SAME:
        mine, theirs = getattr(first, name), getattr(second, name)
        if mine != theirs:
            raise ResultsError(f"{first.experiment}: {name} is {mine} in one study, {theirs} in the other")
    known = {_device(first, device) for device in first.devices}
    for device in second.devices:
        if _device(second, device) in known:
            cell = cell_of(Entry(second, device))
            raise ResultsError(
                f"{first.experiment}: fold {device.fold}, {cell}, seed {device.seed} is in both studies"
            )
    recordings, tests = dict.fromkeys(first.recordings), dict.fromkeys(first.tests)
    recordings |= dict.fromkeys(second.recordings)
    place = {recording: number for number, recording in enumerate(recordings)}
    moved = [
        ClipSet(tuple(place[second.recordings[number]] for number in test.recordings), test.clips)
        for test in second.tests
    ]
    tests |= dict.fromkeys(moved)
    number = {test: at for at, test in enumerate(tests)}
    more = tuple(replace(device, test=number[moved[device.test]]) for device in second.devices)
    folds = {*first.folds, *second.folds}
    lines = [line for data in (first, second) for line in data.left_out if line not in _missing(data)]
    return replace(
        first,
        folds=tuple(sorted(folds)),
        seeds=tuple(sorted({*first.seeds, *second.seeds})),
        recordings=tuple(recordings),
        tests=tuple(tests),
        devices=(*first.devices, *more),
        git=tuple(dict.fromkeys((*first.git, *second.git))),
        hardware=tuple(dict.fromkeys((*first.hardware, *second.hardware))),
        seconds=dict(Counter(first.seconds) + Counter(second.seconds)),
        left_out=(*folds_left_out(first.fold_count, folds), *lines),
    )


def _missing(data: DataSet) -> tuple[str, ...]:
    return folds_left_out(data.fold_count, data.folds)


def _device(data: DataSet, device: DeviceRun) -> tuple[int, int, CellKey]:
    """Which one it is in any study: its number depends on which cells were run."""
    return device.fold, device.seed, cell_of(Entry(data, device))
