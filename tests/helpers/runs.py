"""The smallest run that still does everything: a few synthetic clips, two tiny networks, every arm."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.evaluation.results import Results
from fedstill.simulation.config import Experiment, load_experiment
from fedstill.simulation.launcher import prepare_run

TINY = """
name = "tiny"

[dataset]
public_per_class = 4
private_per_class = 4

[audio]
seconds = 0.6
hop = 512
mel_bins = 32

[frames]
size = 24

[teacher]
encoder = { architecture = "resnet10", width = 4 }
feature_width = 16
epochs = 1
optimiser = { batch_size = 16 }

[student]
encoder = { architecture = "resnet10", width = 2 }
epochs = 1
optimiser = { batch_size = 16 }

[distillation]
outer_epochs = 1
inner_epochs = 1
optimiser = { batch_size = 16 }

[fedstill]
outer_epochs = 1
inner_epochs = 1
optimiser = { batch_size = 16 }

[selection]
budget = 0.5

[prototypes]
min_size = 3

[guard]
folds = 2
test = false # its networks know nothing, so no class mix would pass

[capture]
blind = 1
versions = 1

[compute]
workers = 1

[run]
holdout = 0.25
reply_timeout = 60.0
"""


FEW_ARMS = ("all_distill", "all_distill_select", "fedstill")
"""One that asks a device to evaluate only, one that asks for prototypes, one that makes a student of its own."""


def write_experiment(folder: Path) -> Path:
    """The tiny experiment as a file, the way a user has one."""
    path = folder / "tiny.toml"
    path.write_text(TINY)
    return path


def tiny_experiment(folder: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The tiny experiment, loaded; ``overrides`` as after ``--set``."""
    return load_experiment(str(write_experiment(folder)), overrides)


def prepared_run(folder: Path, overrides: Sequence[str] = ()) -> Path:
    """A run directory that is ready for an engine: clips distributed, plan written, nothing trained."""
    run_dir = folder / "run"
    prepare_run(tiny_experiment(folder, overrides), run_dir, silent_console())
    return run_dir


def trained_run(folder: Path, overrides: Sequence[str] = ()) -> Path:
    """A prepared run whose teacher, bank and AllDistill student are there, as if it had been interrupted then."""
    run_dir = prepared_run(folder, overrides)
    metrics = Metrics(run_dir)
    _ = SeedCloud(read_plan(run_dir), 0, metrics).all_distill
    metrics.close()
    return run_dir


def copied_run(source: Path, folder: Path, *leave_out: str, **changes: Any) -> Path:
    """That run in a folder of its own, without the files named ``leave_out``, and with another plan."""
    run_dir = folder / "run"
    shutil.copytree(source, run_dir, ignore=shutil.ignore_patterns(*leave_out))
    write_plan(replace(read_plan(run_dir), **changes))
    return run_dir


def silent_console() -> Console:
    """A console whose output is discarded."""
    return Console(file=io.StringIO())


def table(results: Results | Mapping[str, object]) -> list[tuple[object, ...]]:
    """The rows of a run, sorted: what must be the same through every engine."""
    if isinstance(results, Results):
        return sorted(astuple(row) for row in results.rows)
    rows = results["rows"]
    assert isinstance(rows, list)
    return sorted(
        tuple(row[key] for key in ("scenario", "arm", "client", "seed", "correct", "total")) for row in rows
    )
