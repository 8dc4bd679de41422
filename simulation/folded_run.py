"""``fedstill simulate --folds N``: every speaker is on a device once, tested by students that never met that speaker.

The dataset's speakers are cut into parts, and each part in turn is the devices' while everybody else is public. A fold
is a run of its own in ``RUN/foldK``; the results of all lie in RUN, as of one run whose devices are those of all folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console

from fedstill.common.errors import ConfigError
from fedstill.common.run_layout import fold_folder
from fedstill.evaluation.results import (
    Results,
    ResultsError,
    read_clips,
    read_results,
    write_clips,
    write_results,
)
from fedstill.simulation.config import Experiment
from fedstill.simulation.launcher import Engine, load_run, simulate

BY_CLIENT = (
    "clients", "teacher", "rows", "traffic", "selection", "losses", "sweeps", "failures", "decisions", "choices",
    "shares",
)  # fmt: skip
"""Fields of ``Results`` whose rows name a device."""


def simulate_folds(experiment: Experiment, run_dir: Path, engine: Engine, console: Console) -> Results:
    """Run every fold that is not finished, from the start or from where it was interrupted, and put them together.

    Raises:
        ConfigError, DataError, RunError, FolderInUse: as ``simulate``; finished folds stay.
    """
    folders = [fold_folder(run_dir, fold) for fold in range(experiment.dataset.folds)]
    for fold, folder in enumerate(folders):
        one = replace(experiment, dataset=replace(experiment.dataset, fold=fold))
        say = f"fold {fold + 1} of {len(folders)}"
        if _is_finished(folder):
            console.print(f"{say}: finished", highlight=False)
            continue
        console.print(f"{say}: {folder}", highlight=False, soft_wrap=True)
        simulate(one, folder, engine, console)
    parts = [read_results(folder) for folder in folders]
    clips = [
        _moved(row, start)
        for folder, start in zip(folders, _starts(parts), strict=True)
        for row in read_clips(folder)
    ]
    if len({(part.dataset, part.class_names) for part in parts}) > 1:
        raise ConfigError(f"{run_dir}: its folds are of different data; start anew, with another --out")
    results = merged(parts)
    write_clips(run_dir, clips)
    write_results(run_dir, results)
    from fedstill.evaluation.federated.report import write_report

    write_report(run_dir)
    return results


def _is_finished(folder: Path) -> bool:
    """What is damaged is gathered again from the fold's journal and devices."""
    try:
        read_results(folder), read_clips(folder)
    except ResultsError:
        return False
    return True


def load_folds(run_dir: Path) -> Experiment:
    """The experiment of an interrupted run. Raises ConfigError if it cannot be read."""
    return load_run(fold_folder(run_dir, 0))


def with_folds(experiment: Experiment, folds: int) -> Experiment:
    """The experiment over so many folds. Raises ConfigError for one fold, and where speakers are rotated otherwise."""
    if folds < 2:
        raise ConfigError(f"--folds {folds}: choose 2 or more")
    if experiment.partition.kind == "robustness":
        raise ConfigError(
            f"--folds: {experiment.name} has folds of its own; type: fedstill robustness-study {experiment.name}"
        )
    return replace(experiment, dataset=replace(experiment.dataset, fold=0, folds=folds))


def merged(parts: Sequence[Results]) -> Results:
    """One result of all folds: the devices of each follow those of the one before, and seconds are added up."""
    first = parts[0]
    rows: dict[str, Any] = {
        name: tuple(
            _moved(row, start)
            for part, start in zip(parts, _starts(parts), strict=True)
            for row in getattr(part, name)
        )
        for name in BY_CLIENT
    }
    dataset = {name: value for name, value in first.config["dataset"].items() if name != "fold"}
    stages = dict.fromkeys(stage for part in parts for stage in part.seconds)
    return replace(
        first,
        **rows,
        captures=tuple(text for part in parts for text in part.captures),
        config={**first.config, "dataset": dataset},
        seconds={stage: sum(part.seconds.get(stage, 0.0) for part in parts) for stage in stages},
        peak_memory_mb=max(part.peak_memory_mb for part in parts),
        date=parts[-1].date,
    )


def _starts(parts: Sequence[Results]) -> list[int]:
    """The number of each fold's first device."""
    return list(accumulate((len(part.clients) for part in parts[:-1]), initial=0))


def _moved(row: Any, start: int) -> Any:
    """A row of a device under its number among all; what belongs to no device stays as it is."""
    return row if row.client is None else replace(row, client=row.client + start)
