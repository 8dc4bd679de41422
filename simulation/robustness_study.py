"""The robustness study: every fold of its experiments as a run, published methods beside it, one file of counts.

Everything is resumable: a fold that is finished is skipped, a fold that was interrupted goes on, and more folds, seeds,
arms or full cells can be asked for later. Most cells get three arms and one seed. Full cells get
every arm, every seed and the published methods, since all cells with everything would take days on two cores.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from fedstill.cloud_server.distillation.arm_names import ARMS
from fedstill.cloud_server.distillation.run_plan import RunPlan, read_plan, write_plan
from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import ConfigError
from fedstill.common.provenance import cpu_model, git_revision, hardware
from fedstill.common.run_layout import EXPERIMENT_FILE, PLAN_FILE
from fedstill.evaluation.results import CLIPS_FILE, RESULTS_FILE, read_results
from fedstill.evaluation.robustness.reading import read_set
from fedstill.evaluation.robustness.records import DataSet, Study, write_study
from fedstill.simulation.config import Experiment, load_experiment
from fedstill.simulation.launcher import load_run, prepare_run, simulate
from fedstill.simulation.published_methods import evaluate_published
from fedstill.simulation.robustness_cells import Cell, cells_of

TIMES_FILE = "times.json"
LEFT_OUT_FILE = "left_out.json"
LEAN_ARMS = ("all_distill_equal_steps", "prior_corrected", "fedstill")
"""Of the cells that are not full."""
FURTHER_ARMS = (
    "all_distill", "all_distill_select_cluster", "class_support", "other_card", "oracle_classes", "oracle_capture",
)  # fmt: skip
"""Of the full cells, beside those of the experiment file; the controls that the questions need, and the thesis'."""


@dataclass(frozen=True)
class StudyOptions:
    """What is run.

    Attributes:
        folds: None for all.
        seeds: of the full cells; the others get the first one.
        cells: the full cells, as ``A``, or ``A.2`` for one severity; None: ``A`` at the middle severity, and ``B``.
        arms: further ones for the full cells; None: ``FURTHER_ARMS``.
        published: whether published methods are evaluated.
        set_: ``table.key=value`` overrides for every experiment.
    """

    folds: tuple[int, ...] | None = None
    seeds: int = 3
    cells: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    published: bool = True
    set_: tuple[str, ...] = ()


def run_study(
    experiments: Sequence[str], options: StudyOptions, out: Path, command: str, console: Console
) -> Study:
    """Run what is not finished yet under OUT/EXPERIMENT/foldN, and write OUT/results.json.

    Raises:
        ConfigError, DataError: something cannot be used; ResultsError: runs do not fit together.
        RunError: a fold failed; what is finished stays.
    """
    plans = {}
    for name in experiments:  # mistakes in the last one show before hours are spent on the first
        experiment = load_experiment(name, options.set_)
        if experiment.name in plans:
            raise ConfigError(f"{experiment.name}: name each experiment once")
        plans[experiment.name] = _folds_of(experiment, options)
    sets = tuple(_run_set(out, folds, options, console) for folds in plans.values())
    study = Study(
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        git=git_revision(),
        cpu=cpu_model(),
        hardware=hardware(),
        versions=read_results(_folder(out, next(iter(plans.values()))[0])).versions,
        sets=sets,
    )
    write_study(out, study)
    return study


def full_clients(experiment: Experiment, wanted: Sequence[str] | None) -> tuple[int, ...]:
    """The clients of the full cells. Raises ConfigError for a name that fits no cell."""
    settings = experiment.robustness
    cells = cells_of(settings)
    if wanted is None:
        present = set(settings.scenarios)
        wanted = [name for name in (f"A.{settings.middle}", "B") if name.partition(".")[0] in present] or [
            settings.scenarios[0]
        ]
    for name in wanted:
        if not any(_is(cell, name) for cell in cells):
            known = ", ".join(dict.fromkeys(cell.scenario for cell in cells))
            raise ConfigError(
                f"--cells {name}: no such cell; give scenarios ({known}), or one severity as A.2"
            )
    return tuple(client for client, cell in enumerate(cells) if any(_is(cell, name) for name in wanted))


def _is(cell: Cell, name: str) -> bool:
    return name in (cell.scenario, f"{cell.scenario}.{cell.severity}")


def _folds_of(experiment: Experiment, options: StudyOptions) -> list[Experiment]:
    """The experiment of each fold."""
    if experiment.partition.kind != "robustness":
        raise ConfigError(f'{experiment.name}: needs partition.kind = "robustness"')
    count = experiment.robustness.folds
    folds = tuple(range(count)) if options.folds is None else options.folds
    for fold in folds:
        if not 0 <= fold < count:
            raise ConfigError(f"--folds {fold}: {experiment.name} has folds 0 to {count - 1}")
    further = FURTHER_ARMS if options.arms is None else options.arms
    for arm in further:
        if arm not in ARMS:
            raise ConfigError(f"--arms {arm}: no such arm (known: {', '.join(ARMS)})")
    full_clients(experiment, options.cells)
    arms = tuple(arm for arm in ARMS if arm in (*experiment.run.arms, *further))
    run = replace(experiment.run, seeds=options.seeds, arms=arms)
    return [
        replace(experiment, run=run, robustness=replace(experiment.robustness, fold=fold)) for fold in folds
    ]


def _run_set(out: Path, folds: Sequence[Experiment], options: StudyOptions, console: Console) -> DataSet:
    seconds: Counter[str] = Counter()
    left_out: list[str] = []
    for experiment in folds:
        run_dir = _folder(out, experiment)
        _run_fold(experiment, run_dir, options, console)
        seconds.update(_read(run_dir / TIMES_FILE, {}))
        fold = experiment.robustness.fold
        left_out += [f"fold {fold}: {line}" for line in _read(run_dir / LEFT_OUT_FILE, [])]
    data = read_set([_folder(out, experiment) for experiment in folds], seconds)
    return replace(data, left_out=(*data.left_out, *left_out))


def _run_fold(experiment: Experiment, run_dir: Path, options: StudyOptions, console: Console) -> None:
    """One fold, unless it is finished."""
    say = f"{experiment.name}, fold {experiment.robustness.fold}"
    _require_same(experiment, run_dir)
    if not (run_dir / PLAN_FILE).exists():
        with _timed(run_dir, "preparation"):
            prepare_run(experiment, run_dir, console)
    full = full_clients(experiment, options.cells)
    plan = read_plan(run_dir)
    wanted = _plan_for(plan, experiment, full)
    if plan != wanted:
        (run_dir / RESULTS_FILE).unlink(missing_ok=True)  # it holds less than what is wanted
        write_plan(wanted)
        replace_text(run_dir / EXPERIMENT_FILE, json.dumps(to_plain(experiment), indent=1))
    if (run_dir / RESULTS_FILE).exists() and (run_dir / CLIPS_FILE).exists():
        console.print(f"{say}: finished", highlight=False)
    else:
        console.print(f"{say}: {run_dir}", highlight=False, soft_wrap=True)
        with _timed(run_dir, "training"):
            simulate(experiment, run_dir, "inprocess", console)
    if options.published:
        with _timed(run_dir, "published methods"), console.status(say) as status:
            left_out = evaluate_published(
                run_dir, full, on_progress=lambda line: status.update(f"{say}: {line}")
            )
        replace_text(run_dir / LEFT_OUT_FILE, json.dumps(left_out))


def _plan_for(plan: RunPlan, experiment: Experiment, full: Sequence[int]) -> RunPlan:
    """With the seeds and arms that are wanted; cells that are not full get the lean ones."""
    run = experiment.run
    lean = tuple(client for client in range(plan.clients) if client not in full)
    return replace(
        plan,
        seeds=tuple(range(run.first_seed, run.first_seed + run.seeds)),
        arms=run.arms,
        lean=lean,
        lean_arms=tuple(arm for arm in run.arms if arm in LEAN_ARMS),
        teacher_reference=False,
    )


def _require_same(experiment: Experiment, run_dir: Path) -> None:
    """Raise ConfigError if the folder holds another experiment; seeds and arms may be others."""
    if not (run_dir / PLAN_FILE).exists():
        return
    before = load_run(run_dir)
    run = replace(before.run, seeds=experiment.run.seeds, arms=experiment.run.arms)
    if replace(before, run=run) != experiment:
        raise ConfigError(f"{run_dir}: was made with other settings; choose another --out, or delete it")


@contextmanager
def _timed(run_dir: Path, part: str) -> Iterator[None]:
    """Add the seconds to the fold's times, also if the work is interrupted."""
    started = time.monotonic()
    try:
        yield
    finally:
        if run_dir.exists():
            times = _read(run_dir / TIMES_FILE, {})
            times[part] = round(times.get(part, 0.0) + time.monotonic() - started, 1)
            replace_text(run_dir / TIMES_FILE, json.dumps(times))


def _folder(out: Path, experiment: Experiment) -> Path:
    return out / experiment.name / f"fold{experiment.robustness.fold}"


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default
