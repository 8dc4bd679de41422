"""``fedstill simulate``: from an experiment to a run directory with results, models, plots and a report.

The launcher is the only place that sees cloud and devices at once. It distributes the private clips to one folder per
device, writes the cloud's plan, starts the engine, follows the event log, and gathers the results of both sides.
A user's mistake is found before torch and the plots are imported, which takes seconds.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from fedstill.cloud_server.distillation.run_plan import RunPlan, read_plan, write_plan
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import sole_user
from fedstill.common.provenance import git_revision, hardware
from fedstill.common.run_layout import EXPERIMENT_FILE, PLAN_FILE, fold_folder
from fedstill.datasets.audiovisual.clip import ClipSource
from fedstill.datasets.audiovisual.store import ClipStore, open_store
from fedstill.evaluation.results import ClientClasses, PretrainedRow, Results, write_clips, write_results
from fedstill.simulation.config import Experiment
from fedstill.simulation.folders import device_folder, write_device, write_store
from fedstill.simulation.gather import gather_clips, gather_rows
from fedstill.simulation.pretrained import with_checked_encoders
from fedstill.simulation.progress import LiveProgress
from fedstill.simulation.robustness_cells import deal_cells
from fedstill.simulation.robustness_devices import captures_of, with_controls, write_devices
from fedstill.simulation.sources import Positions, deal, open_source, split_positions

Engine = Literal["flower", "inprocess"]

VERSIONED = ("fedstill", "flwr", "torch", "torchvision", "torchaudio", "numpy", "scikit-learn")
NEEDED = ("torch", "torchaudio")
NO_TEACHER_ROW = (
    "the teacher has pretrained encoders: devices cannot run it, so there is no row for it on their clips"
)
CONCURRENT_DEVICES = 2
"""Simulated devices that answer at the same time."""


def simulate(experiment: Experiment, run_dir: Path, engine: Engine, console: Console) -> Results:
    """Run an experiment from the start, or continue an interrupted run directory.

    Raises:
        ConfigError, DataError: the experiment or its data cannot be used; nothing has been trained.
        RunError: Flower failed; finished work stays, and ``--resume`` continues.
        FolderInUse: another process works on this run.
    """
    require_packages()
    started = time.monotonic()
    if not (run_dir / PLAN_FILE).exists():
        prepare_run(experiment, run_dir, console)
    with sole_user(run_dir):
        plan = _read_plan(run_dir, console)
        prepared = time.monotonic()
        with LiveProgress(run_dir, console) as progress:
            _run_engine(engine, run_dir, plan)
        finished = time.monotonic()
        seconds = {"prepare": prepared - started, "compute": finished - prepared}
        results = collect(experiment, run_dir, seconds, progress.peak_memory_mb)
        from fedstill.evaluation.federated.report import write_report

        write_report(run_dir)
    return results


def require_packages() -> None:
    """Raise ModuleNotFoundError now if what the engines' processes need is not there; nothing is imported."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def is_folded(run_dir: Path) -> bool:
    """Whether a folder holds the folds of a run, finished or not."""
    return (fold_folder(run_dir, 0) / EXPERIMENT_FILE).exists()


def require_new(run_dir: Path) -> None:
    """Raises ConfigError where the folder holds a run already."""
    if (run_dir / PLAN_FILE).exists() or is_folded(run_dir):
        raise ConfigError(f"{run_dir}: holds a run already; choose another --out, or --resume it")


def load_run(run_dir: Path) -> Experiment:
    """The experiment of an interrupted run. Raises ConfigError if the folder holds none."""
    path = run_dir / EXPERIMENT_FILE
    if not path.exists():
        raise ConfigError(f"{run_dir}: no run to resume here ({EXPERIMENT_FILE} is missing)")
    try:
        return from_plain(Experiment, json.loads(path.read_text()))
    except ValueError as error:
        raise ConfigError(
            f"{run_dir}: cannot be resumed: {EXPERIMENT_FILE} is damaged or of another version ({error})"
        ) from error


def load_plan(state: Path) -> RunPlan:
    """The plan in a coordinator's folder. Raises ConfigError if it is damaged."""
    try:
        return read_plan(state)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{state / PLAN_FILE}: damaged ({error}): put back a copy of this folder"
        ) from error


def prepare_run(experiment: Experiment, run_dir: Path, console: Console) -> None:
    """Decode clips into the cloud's folder and one folder per device; the plan is written last."""
    with_weights = with_checked_encoders(experiment)
    robustness = experiment.partition.kind == "robustness"
    source = open_source(experiment)
    public, private = split_positions(source)
    if robustness:
        shares = deal_cells(source, private, experiment.robustness)
    else:
        shares = deal(source, private, experiment.partition)
    with sole_user(run_dir):
        with console.status(f"decoding {len(source.index)} clips of {source.name}") as status:
            store = write_store(experiment, source, public, run_dir / "public", keep_sound=True)
            if robustness:
                write_devices(experiment, source, shares, run_dir, store, status.update)
            else:
                for client, share in enumerate(shares):
                    folder, steps = device_folder(run_dir, client), store.audio.shape[-1]
                    write_device(experiment, source, share, folder, feature_steps=steps)
        (run_dir / EXPERIMENT_FILE).write_text(json.dumps(to_plain(experiment), indent=1))
        plan = make_plan(with_weights, source, shares, run_dir)
        write_plan(with_controls(plan, experiment, run_dir) if robustness else plan)
    if experiment.teacher.pretrained:
        console.print(NO_TEACHER_ROW, highlight=False)


def collect(
    experiment: Experiment, run_dir: Path, seconds: dict[str, float], peak_memory_mb: float
) -> Results:
    """Write ``results.json`` and ``clips.json`` from the files of cloud and devices."""
    plan = read_plan(run_dir)
    public = open_store(Path(plan.public))
    results = Results(
        experiment=experiment.name,
        dataset=public.dataset,
        synthetic=experiment.dataset.kind == "synthetic",
        mode=experiment.mode,
        class_names=public.class_names,
        clients=tuple(_client_classes(run_dir, client) for client in range(plan.clients)),
        captures=captures_of(run_dir),
        seeds=plan.seeds,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
        versions=_versions(plan),
        git=git_revision(),
        config=to_plain(experiment),
        seconds={**_stage_seconds(run_dir), **seconds, "total": sum(seconds.values())},
        peak_memory_mb=peak_memory_mb,
        parameters=_parameters(plan, public),
        pretrained=tuple(
            PretrainedRow(modality, one.model, one.sha256, one.licence, one.frozen)
            for modality, one in plan.teacher.pretrained.items()
        ),
        **gather_rows(run_dir),
    )
    write_clips(run_dir, gather_clips(run_dir, plan.clients))
    write_results(run_dir, results)
    return results


def _read_plan(run_dir: Path, console: Console) -> RunPlan:
    try:
        plan = read_plan(run_dir)
        begun_before = "capture" not in json.loads((run_dir / PLAN_FILE).read_text())
    except ValueError as error:
        raise ConfigError(f"{run_dir}: {PLAN_FILE} is damaged or of another version ({error})") from error
    if begun_before:
        console.print(
            "[yellow]begun by an older fedstill:[/] finished jobs keep the method of then; for one "
            "method throughout, start anew"
        )
    return plan


def _run_engine(engine: Engine, run_dir: Path, plan: RunPlan) -> None:
    if engine == "inprocess":
        from fedstill.simulation.inprocess import run_inprocess

        run_inprocess(run_dir, plan.clients)
    else:
        from fedstill.simulation.flower_engine import run_flower

        run_flower(run_dir, plan.clients, CONCURRENT_DEVICES)


def make_plan(
    experiment: Experiment, source: ClipSource, shares: tuple[Positions, ...], run_dir: Path
) -> RunPlan:
    """The cloud's run plan for devices that hold these shares of the private clips."""
    run = experiment.run
    held = [{source.index[position].label for position in share} - {None} for share in shares]
    return RunPlan(
        public=str(run_dir / "public"),
        work=str(run_dir),
        clients=len(shares),
        seeds=tuple(range(run.first_seed, run.first_seed + run.seeds)),
        scenarios=run.scenarios,
        arms=run.arms,
        oracle_classes=tuple(
            tuple(sorted(label for label in labels if label is not None)) for labels in held
        ),
        teacher=experiment.teacher,
        student=experiment.student,
        distillation=experiment.distillation,
        selection=experiment.selection,
        prototypes=experiment.prototypes,
        ours=experiment.fedstill,
        compute=experiment.compute,
        guard=experiment.guard,
        capture=experiment.capture,
        cohorts=experiment.cohorts,
        downlink=experiment.downlink,
        sweeps=run.sweeps,
        sweep_seeds=run.sweep_seeds,
        holdout=run.holdout,
        reply_timeout=run.reply_timeout,
        teacher_reference=not experiment.teacher.pretrained,
    )


def _versions(plan: RunPlan) -> dict[str, str]:
    names = (*VERSIONED, "timm") if "visual" in plan.teacher.pretrained else VERSIONED
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def _client_classes(run_dir: Path, client: int) -> ClientClasses:
    store = open_store(run_dir / "devices" / str(client) / "data")
    counts = Counter(store.class_names[label] for label in store.labels if label >= 0)
    return ClientClasses(client, {name: counts[name] for name in store.class_names if counts[name]})


def _parameters(plan: RunPlan, public: ClipStore) -> dict[str, int]:
    from fedstill.cloud_server.distillation.teacher import student_spec, teacher_spec
    from fedstill.models.audiovisual.network import AudioVisualNet, parameter_count

    specs = {
        "teacher": teacher_spec(public, plan.teacher),
        "student": student_spec(public, plan.teacher, plan.student),
    }
    sizes = {name: parameter_count(AudioVisualNet(spec)) for name, spec in specs.items()}
    for event in read_events(Path(plan.work)):
        if event["event"] == "pretrained_teacher":
            sizes["teacher"] = event["parameters"]
    return sizes


def _stage_seconds(run_dir: Path) -> dict[str, float]:
    """Seconds between a seed's start and its last teacher epoch, summed over seeds."""
    started: dict[int, float] = {}
    teacher: dict[int, float] = {}
    for event in read_events(run_dir):
        if event["event"] == "seed":
            started[event["seed"]] = event["time"]
        elif event["event"] == "teacher_epoch":
            teacher[event["seed"]] = event["time"] - started[event["seed"]]
    return {"teacher": float(np.sum(list(teacher.values()) or [0.0]))}
