"""The tasks of a registry on one trunk, ready to serve: trunk, tasks, engine, profile, in this order."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.served_models import OnProgress, ServedModels
from fedstill.cloud_server.serving.engine.chosen_schedules import chosen_schedules
from fedstill.cloud_server.serving.engine.engine import Engine, EngineSettings
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.profiler import time_ratios
from fedstill.cloud_server.serving.engine.trunk import Trunk, load_trunk
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, profile_to_plain, read_profile
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.live_profile import (
    ProfileKey,
    Validation,
    check_trunk,
    fit_profile,
    measure_profile,
)
from fedstill.cloud_server.serving.server.live_tasks import LiveTasks
from fedstill.cloud_server.serving.tasks.registry import TaskVersion, open_registry
from fedstill.common.atomic_files import replace_text
from fedstill.common.errors import ConfigError
from fedstill.common.option_values import as_mistake, pair, whole_numbers
from fedstill.common.paths import data_path
from fedstill.common.provenance import cpu_model, hardware
from fedstill.datasets.images.image_tasks import KNOWN_TASKS, find_images
from fedstill.models.vit.schedules import TokenSchedule, parse_schedule
from fedstill.models.vit.task_bank import TaskParameters

LOG = logging.getLogger(__name__)

STALE = 1.3
"""Factor between times of today and those of a kept profile, from which the log warns."""


def registry_models(plan: ServePlan, tell: OnProgress) -> ServedModels:
    """Open, measure (or find what was measured) and warm up. Raises ConfigError, DataError."""
    registry = open_registry(plan.state)
    tell("reading the weights")
    trunk = load_trunk(data_path(plan.weights), plan.architecture)
    generation = registry.generation()
    tasks = registry.active()
    parameters = registry.load_active(trunk.fingerprint)
    if not tasks or parameters.keys() != tasks.keys():
        raise ConfigError(f"{plan.state}: serves no task; add one with: fedstill tasks add NAME")
    given = read_profile(plan.profile) if plan.profile is not None else None
    if given is not None:
        check_trunk(given, trunk.fingerprint)
    tell("choosing the fastest form of the layers")
    engine = _make_engine(plan, trunk, parameters, given)
    tell(f"warming up {len(engine.settings.schedules)} schedules")
    engine.warm_up()
    measured, columns, keep = _profile(plan, trunk, engine, tasks, given, tell)
    schedules = {schedule.name: schedule for schedule in engine.settings.schedules}

    def live_tasks(dispatcher: Dispatcher) -> LiveTasks:
        return LiveTasks(
            registry, engine, dispatcher, trunk.fingerprint, measured, columns, tasks, generation,
            partial(make_policy, plan.policy), keep,
        )  # fmt: skip

    return ServedModels(
        fit_profile(measured, columns, tasks, schedules, engine.maximum_batch),
        partial(_infer, engine, schedules),
        engine.net.image_size,
        live_tasks,
        registry.close,
    )


def _make_engine(
    plan: ServePlan, trunk: Trunk, parameters: dict[str, TaskParameters], given: Profile | None
) -> Engine:
    with as_mistake("--profile, --schedules or --batches"):
        if given is None:
            schedules = chosen_schedules(plan.schedules, trunk.net, parameters)
        else:
            schedules = tuple(parse_schedule(one.name, trunk.net.layers) for one in given.schedules)
        precision: Any = plan.precision  # checked
        settings = EngineSettings(schedules, whole_numbers("--batches", plan.batches), plan.device, precision)
        return Engine(trunk.net, parameters, settings)


def _profile(
    plan: ServePlan,
    trunk: Trunk,
    engine: Engine,
    tasks: Mapping[str, TaskVersion],
    given: Profile | None,
    tell: OnProgress,
) -> tuple[Profile, dict[str, str], Callable[[Profile], None]]:
    """The profile, the task version that each of its columns belongs to, and what keeps a corrected one: nothing where
    the profile is the user's own file."""
    if given is not None:
        columns = {name: tasks[name].fingerprint for name in given.tasks if name in tasks}
        return given, columns, lambda _: None
    places = dict(pair(text) for text in plan.images)
    strange = sorted(set(places) - set(tasks))
    if strange:
        raise ConfigError(f"--images: {strange[0]} is not served (served: {', '.join(tasks)})")
    known = [name for name in tasks if name in places or name in KNOWN_TASKS]
    if not known:
        first = next(iter(tasks))
        raise ConfigError(
            f"{first}: no images to measure with; give --images {first}=PATH, or --profile FILE"
        )
    columns = {name: tasks[name].fingerprint for name in known}
    key = ProfileKey(
        trunk.fingerprint,
        tuple(sorted(columns.items())),
        tuple(schedule.name for schedule in engine.settings.schedules),
        engine.settings.batch_buckets,
        (plan.val_images, plan.seed),
        f"{hardware()} {cpu_model()} {engine.device} {engine.dtype} {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
    )
    file = plan.folder / f"profile-{key.digest}.json"
    if file.exists():
        LOG.info("event=profile_found file=%s", file)
        found = read_profile(file)
        tell("comparing the kept profile with times of now")
        _warn_if_stale(engine, found)
        return found, columns, partial(_write, file)
    for name in set(tasks) - set(known):
        LOG.warning("event=task_not_measured task=%s hint='give --images %s=PATH'", name, name)
    LOG.info("event=profiling tasks=%s schedules=%d", ",".join(known), len(key.schedules))
    tell("reading the validation images")
    validation: Validation = {
        name: (loaded.images, loaded.labels)
        for name in known
        for loaded in [find_images(name, places.get(name)).load("val", plan.val_images, plan.seed)]
    }
    source = f"{trunk.architecture}, {engine.variant}, {hardware()}, {cpu_model()}, {plan.val_images} images per task"
    with as_mistake("--schedules"):
        profile = measure_profile(
            engine,
            validation,
            trunk.architecture,
            source,
            trunk.fingerprint,
            tell,
        )
    _write(file, profile)
    LOG.info("event=profile_measured file=%s", file)
    return profile, columns, partial(_write, file)


def _write(file: Path, profile: Profile) -> None:
    replace_text(file, json.dumps(profile_to_plain(profile), indent=1))


def _warn_if_stale(engine: Engine, profile: Profile) -> None:
    """Its fastest and its slowest schedule are timed again: a busy machine may have measured it, or be busy now."""
    ends = dict.fromkeys((profile.useful[0], profile.useful[-1]))
    few = engine.settings.batch_buckets[:2]  # small batches: a start need not wait for large ones
    ratios = time_ratios(engine, replace(profile, schedules=tuple(ends)), rounds=3, sizes=few, looks=1)
    worst = max(ratios, key=lambda name: abs(math.log(ratios[name])))
    if not 1 / STALE < ratios[worst] < STALE:
        LOG.warning(
            "event=profile_stale schedule=%s now_over_stored=%.2f "
            "hint='it is timed again while the server is idle'",
            worst, ratios[worst],
        )  # fmt: skip


def _infer(
    engine: Engine,
    schedules: Mapping[str, TokenSchedule],
    images: Sequence[torch.Tensor],
    tasks: Sequence[str],
    schedule: str,
) -> list[Prediction | Rejection]:
    return engine.infer(torch.stack(list(images)), tasks, schedules[schedule])
