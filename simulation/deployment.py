"""An experiment in an operator's hands: the cloud's folder with public clips and a plan, and no private clip at all."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from fedstill.cloud_server.distillation.arm_names import ARMS, ROBUSTNESS_ARMS
from fedstill.cloud_server.distillation.run_plan import RunPlan, write_plan
from fedstill.cloud_server.journal.journal import open_journal
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import ConfigError
from fedstill.common.run_layout import EXPERIMENT_FILE, PERSONAL_ARM, PLAN_FILE
from fedstill.datasets.audiovisual.store import build_store
from fedstill.models.weights.delta_coding import UpdatePrecision
from fedstill.simulation.config import Experiment
from fedstill.simulation.launcher import load_plan, load_run, make_plan
from fedstill.simulation.pretrained import with_checked_encoders
from fedstill.simulation.sources import open_source

ALL_CLIPS = "latency_insensitive"
"""The scenario of a service: a device summarises all of its clips, for none of them is a test."""


def prepare_deployment(
    experiment: Experiment,
    state: Path,
    console: Console,
    *,
    arms: tuple[str, ...] | None = None,
    clients: int = 0,
    journal: str = "",
    join_timeout: float = 600.0,
    downlink: UpdatePrecision = "int8",
    cohorts: float = 0.0,
    every: float = 0.0,
) -> None:
    """Fill ``state`` once. A folder that already holds this experiment keeps all that it has, and gets these settings.

    Args:
        arms: of a study: for every device, those of ``fedstill simulate``, except the oracle. None: a service, which
            gives each device one student whenever it needs one.
        clients: how many devices there are, if no credentials are issued to them.
        journal: SQLAlchemy URL; empty for SQLite in ``state``.
        join_timeout: seconds that a device may be late.
        downlink: how students travel. Devices install the last arm's student.
        every: seconds after which a service gives a device a new student in any case; 0: never.
        cohorts: how differently devices may record that share a student; 0: each one has its own.

    Raises:
        ConfigError, DataError: something does not fit; nothing was written.
        JournalError: the journal cannot be opened; better said now than by the ServerApp.
    """
    _require_arms(arms or ())
    settings = partial(
        _with_settings,
        experiment=experiment,
        arms=arms,
        join_timeout=join_timeout,
        downlink=downlink,
        cohorts=cohorts,
        every=every,
    )
    if (state / PLAN_FILE).exists():
        if to_plain(load_run(state)) != to_plain(experiment):
            raise ConfigError(
                f"{state}: holds another experiment; choose another --state, or have a new teacher made with: "
                "fedstill fleet retrain"
            )
        plan = load_plan(state)
        if journal not in ("", plan.journal):
            raise ConfigError(f"--journal: {state} has its journal elsewhere; leave the option out")
        open_journal(state, plan.journal).close()
        if clients:  # without credentials, also if devices had some before
            plan = replace(plan, clients=clients, devices=())
        write_plan(settings(plan))
        return
    with_weights = with_checked_encoders(experiment)
    source = open_source(experiment)
    public = np.flatnonzero([info.split == "public" for info in source.index])
    if not len(public):
        raise ConfigError(f"{source.name}: has no public clips to teach from")
    state.mkdir(parents=True, exist_ok=True)
    open_journal(state, journal).close()
    with console.status(f"decoding {len(public)} public clips of {source.name}"):
        build_store(
            source, public.tolist(), experiment.audio, experiment.frames, state / "public", keep_sound=True
        )
    (state / EXPERIMENT_FILE).write_text(json.dumps(to_plain(experiment), indent=1))
    plan = replace(
        make_plan(with_weights, source, (), state),
        clients=clients,
        sweeps=(),
        journal=journal,
        teacher_reference=False,
    )
    write_plan(settings(plan))


def _with_settings(
    plan: RunPlan,
    experiment: Experiment,
    arms: tuple[str, ...] | None,
    join_timeout: float,
    downlink: UpdatePrecision,
    cohorts: float,
    every: float,
) -> RunPlan:
    """The plan, as the operator wants it now."""
    run = experiment.run
    seeds = tuple(range(run.first_seed, run.first_seed + run.seeds))
    return replace(
        plan,
        service=arms is None,
        every=every,
        arms=arms or (PERSONAL_ARM,),
        seeds=seeds if arms else seeds[:1],
        scenarios=run.scenarios if arms else (ALL_CLIPS,),
        join_timeout=join_timeout,
        downlink=replace(experiment.downlink, precision=downlink, install=arms[-1] if arms else PERSONAL_ARM),
        cohorts=replace(experiment.cohorts, distance=cohorts),
    )


def _require_arms(arms: tuple[str, ...]) -> None:
    known = [name for name in ARMS if name not in ("oracle_classes", *ROBUSTNESS_ARMS)]
    for arm in arms:
        if arm not in known:
            raise ConfigError(f"--arms: {arm!r} is none of {', '.join(known)}")
