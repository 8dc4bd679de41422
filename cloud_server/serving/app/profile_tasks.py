"""The profile of a registry's tasks on this machine, for the planner: ``fedstill tasks profile``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedstill.cloud_server.serving.app.int8_ranges import keep_ranges, ranges_file
from fedstill.cloud_server.serving.engine.chosen_schedules import chosen_schedules, int8_fits
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import BackendName, EngineSettings
from fedstill.cloud_server.serving.engine.profiler import (
    ScheduleProfile,
    make_profile,
    profile_engine,
    time_ratios,
)
from fedstill.cloud_server.serving.engine.trunk import Trunk
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.server.live_profile import check_trunk
from fedstill.common.option_values import as_mistake, whole_numbers
from fedstill.common.provenance import cpu_model, hardware
from fedstill.datasets.images.image_tasks import ImageTask
from fedstill.models.vit.schedules import constant_schedule, parse_schedule
from fedstill.models.vit.task_bank import TaskParameters


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """As typed: schedules (None for the usual ones), batch sizes, images per task and their seed, the bytes that the
    activations of a batch may take, and the engine's backend."""

    schedules: str | None
    batches: str
    images: int
    seed: int
    memory_limit: int | None
    backend: BackendName


def profile_tasks(
    trunk: Trunk,
    parameters: dict[str, TaskParameters],
    images: Mapping[str, ImageTask],
    options: ProfileOptions,
    out: Path,
    on_progress: Callable[[str], None],
) -> tuple[Profile, tuple[ScheduleProfile, ...]]:
    """The profile without dominated schedules, and all measurements.

    images: of every task, by name. out: where the profile will be; what its schedules in int8 need is put beside it.
    Raises ConfigError for options that do not fit the trunk or the tasks.
    """
    with as_mistake("--schedules or --batches"):
        settings = EngineSettings(
            (constant_schedule(0, trunk.net.layers),),
            whole_numbers("--batches", options.batches),
            backend=options.backend,
            ranges=ranges_file(out),
        )
        schedules = chosen_schedules(options.schedules, trunk.net, parameters, int8_fits(trunk.net, settings))
        settings = replace(settings, schedules=schedules)
    if any(schedule.int8 for schedule in schedules):
        keep_ranges(ranges_file(out), trunk.net, parameters, images.values(), options.seed)
    loaded = {name: task.load("val", options.images, options.seed) for name, task in images.items()}
    with as_mistake("--schedules or --backend"):
        engine = Engine(trunk.net, parameters, settings)
    engine.warm_up(on_progress)
    with as_mistake("--schedules"):
        measured = profile_engine(
            engine,
            {name: (one.images, one.labels) for name, one in loaded.items()},
            memory_limit=options.memory_limit,
            progress=on_progress,
        )
    source = f"{trunk.architecture}, {engine.variant}, {hardware()}, {cpu_model()}, {options.images} images per task"
    made = make_profile(
        trunk.architecture, source, tuple(images), measured, trunk.fingerprint, engine.variant
    )
    return made.without_dominated(), measured


def compare_times(
    trunk: Trunk, parameters: dict[str, TaskParameters], profile: Profile, ranges: Path, batches: str
) -> dict[str, float]:
    """Times of today over those of the profile, by schedule. ranges: the file beside it. Raises ConfigError if it is
    not of this trunk."""
    check_trunk(profile, trunk.fingerprint)
    with as_mistake("--check or --batches"):
        schedules = tuple(parse_schedule(one.name, trunk.net.layers) for one in profile.schedules)
        sizes = whole_numbers("--batches", batches)
        settings = EngineSettings(schedules, sizes, backend="auto", variant=profile.engine, ranges=ranges)
        engine = Engine(trunk.net, parameters, settings)
        engine.warm_up()
        return time_ratios(engine, profile)
