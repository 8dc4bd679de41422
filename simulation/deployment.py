"""An experiment in an operator's hands: the cloud's folder with public clips and a plan, and no private clip at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from fedstill.cloud_server.distillation.arm_names import ARMS, ROBUSTNESS_ARMS
from fedstill.cloud_server.distillation.run_plan import PLAN_FILE, read_plan, write_plan
from fedstill.cloud_server.federation.journal import open_journal
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import ConfigError
from fedstill.common.run_layout import EXPERIMENT_FILE
from fedstill.datasets.audiovisual.store import build_store
from fedstill.models.weights.delta_coding import UpdatePrecision
from fedstill.simulation.config import Experiment
from fedstill.simulation.launcher import load_run, make_plan
from fedstill.simulation.pretrained import with_checked_encoders
from fedstill.simulation.sources import open_source

DEFAULT_ARMS = ("all_distill", "fedstill")
"""The arms that show a device's accuracy before and after personalisation."""


def prepare_deployment(
    experiment: Experiment,
    state: Path,
    console: Console,
    *,
    arms: tuple[str, ...] = DEFAULT_ARMS,
    clients: int = 0,
    journal: str = "",
    join_timeout: float = 600.0,
    downlink: UpdatePrecision = "int8",
    cohorts: float = 0.0,
) -> None:
    """Fill ``state`` once; a folder that already holds this experiment stays as it is.

    Args:
        arms: for every device; those of ``fedstill simulate``, except the oracle.
        clients: how many devices there are, if no credentials are issued to them.
        journal: SQLAlchemy URL; empty for SQLite in ``state``.
        join_timeout: seconds that a device may be late.
        downlink: how students travel. Devices install the last arm's student.
        cohorts: how differently devices may record that share a student; 0: each one has its own.

    Raises:
        ConfigError, DataError: something does not fit; nothing was written.
        JournalError: the journal cannot be opened; better said now than by the ServerApp.
    """
    _require_arms(arms)
    if (state / PLAN_FILE).exists():
        if to_plain(load_run(state)) != to_plain(experiment):
            raise ConfigError(f"{state}: holds another experiment; choose another --state")
        open_journal(state, read_plan(state).journal).close()
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
        arms=arms,
        clients=clients,
        sweeps=(),
        journal=journal,
        join_timeout=join_timeout,
        teacher_reference=False,
        downlink=replace(experiment.downlink, precision=downlink, install=arms[-1]),
        cohorts=replace(experiment.cohorts, distance=cohorts),
    )
    write_plan(plan)


def _require_arms(arms: tuple[str, ...]) -> None:
    known = [name for name in ARMS if name not in ("oracle_classes", *ROBUSTNESS_ARMS)]
    for arm in arms:
        if arm not in known:
            raise ConfigError(f"--arms: {arm!r} is none of {', '.join(known)}")
