"""One trunk of a registry, ready to serve: its engine and its profile, in this order."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fedstill.cloud_server.serving.app.int8_ranges import has_ranges, keep_ranges, ranges_file
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.served_models import OnProgress
from fedstill.cloud_server.serving.engine.chosen_schedules import chosen_schedules, int8_fits
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.profiler import time_ratios
from fedstill.cloud_server.serving.engine.trunk import Trunk
from fedstill.cloud_server.serving.scheduling.profile import Profile, profile_to_plain, read_profile
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.live_profile import (
    ProfileKey,
    Validation,
    check_trunk,
    fit_profile,
    measure_profile,
)
from fedstill.cloud_server.serving.server.loadable_engine import NotLoaded, ServingEngine
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry, TaskVersion
from fedstill.common.atomic_files import replace_text
from fedstill.common.errors import ConfigError, DataError, first_line
from fedstill.common.option_values import as_mistake, pair, whole_numbers
from fedstill.common.provenance import cpu_model, hardware
from fedstill.datasets.images.image_tasks import KNOWN_TASKS, ImageTask, find_images
from fedstill.models.vit.schedules import TokenSchedule, check_distinct, constant_schedule, parse_schedule
from fedstill.models.vit.task_bank import TaskParameters

LOG = logging.getLogger(__name__)

MOVED = Rejection("moved", message="its task moved to another trunk while the query waited: ask again")
STALE = 1.3
"""Factor between times of today and those of a kept profile, from which the log warns."""


@dataclass(frozen=True)
class KnownTrunk:
    """What is known of a trunk before its engine is made.

    name: among several; else empty. tasks, parameters: that it serves. settings: with the variant of an engine that was
    measured. engine: machine, libraries and what is asked of the engine, one line. columns: what each column of its
    profile belongs to. profile: measured before, or the user's own; None if it has to be measured. own: the user's.
    file: of a measured profile.
    """

    name: str
    trunk: Trunk
    tasks: Mapping[str, TaskVersion]
    parameters: dict[str, TaskParameters]
    settings: EngineSettings
    engine: str
    columns: Mapping[str, str]
    profile: Profile | None
    own: bool
    file: Path

    def keep(self, profile: Profile) -> None:
        """Corrected times go into the file, unless it is the user's own."""
        if not self.own:
            _write(self.file, profile)

    def ready(self, engine: ServingEngine, measured: Profile) -> ReadyTrunk:
        """With an engine and a profile it is complete."""
        trunk = replace(self.trunk, net=engine.net)
        return ReadyTrunk(self.name, trunk, engine, self.tasks, measured, self.columns, self.keep)


@dataclass(frozen=True)
class ReadyTrunk:
    """Measured; warm, or known well enough to be loaded when it is asked for.

    name: among several; else empty. trunk: without its weights. tasks: that it serves. measured: the profile, with
    `columns`: what each of its columns belongs to. keep: stores a corrected one.
    """

    name: str
    trunk: Trunk
    engine: ServingEngine
    tasks: Mapping[str, TaskVersion]
    measured: Profile
    columns: Mapping[str, str]
    keep: Callable[[Profile], None]

    @property
    def schedules(self) -> dict[str, TokenSchedule]:
        return {schedule.name: schedule for schedule in self.engine.settings.schedules}

    @property
    def profile(self) -> Profile:
        """For the planner: of exactly these tasks."""
        maximum = self.engine.maximum_batch
        return fit_profile(self.measured, self.columns, self.tasks, self.schedules, maximum)

    def infer(
        self, images: Sequence[torch.Tensor], tasks: Sequence[str], schedule: TokenSchedule
    ) -> list[Prediction | Rejection]:
        """Answer a batch. An image may have been prepared for another trunk, which its task was on when it came; and
        the trunk that its task is on now may be out of memory."""
        side = self.engine.net.image_size
        fits = [image.shape[-1] == side for image in images]
        rows = [row for row, fit in enumerate(fits) if fit]
        if not rows:
            return [MOVED] * len(fits)
        chosen = torch.stack([images[row] for row in rows])
        try:
            answers = iter(self.engine.infer(chosen, [tasks[row] for row in rows], schedule))
        except NotLoaded:
            return [MOVED] * len(fits)
        return [next(answers) if fit else MOVED for fit in fits]


def known_trunk(
    plan: ServePlan, name: str, trunk: Trunk, profile: Path | None, registry: TaskRegistry
) -> KnownTrunk:
    """What is known of it without an engine. profile: the user's own. Raises ConfigError, DataError."""
    tasks = registry.active_on(trunk.fingerprint)
    parameters = registry.load_active(trunk.fingerprint)
    if parameters.keys() != tasks.keys():
        raise ConfigError(f"{plan.state}: was changed meanwhile: start again")
    given = read_profile(profile) if profile is not None else None
    if given is not None:
        check_trunk(given, trunk.fingerprint)
    settings = _settings(plan, trunk, parameters, given)
    columns = _columns(plan, tasks, given)
    engine = _engine_text(settings)
    file = plan.folder / f"profile-{_key(plan, trunk, settings, columns, engine).digest}.json"
    known = given or (read_profile(file) if file.exists() else None)
    ranges = ranges_file(profile if profile is not None else file)
    settings = replace(settings, variant=known.engine if known else "", ranges=ranges)
    own = given is not None
    return KnownTrunk(name, trunk, tasks, parameters, settings, engine, columns, known, own, file)


def ready_trunk(
    plan: ServePlan, name: str, trunk: Trunk, profile: Path | None, registry: TaskRegistry, tell: OnProgress
) -> ReadyTrunk:
    """Measure (or find what was measured) and warm up. profile: the user's own. Raises ConfigError, DataError."""
    known = known_trunk(plan, name, trunk, profile, registry)
    measure_ranges_of(plan, known, trunk, tell)
    engine = chosen_engine(trunk, known.parameters, known.settings, tell)
    engine.warm_up(tell)
    return known.ready(engine, profile_of(plan, known, engine, tell))


def measure_ranges_of(plan: ServePlan, known: KnownTrunk, trunk: Trunk, tell: OnProgress) -> None:
    """What schedules in int8 need, unless it is there. trunk: with weights. Raises ConfigError, DataError, OSError,
    ValueError if it cannot be measured or written, unless a profile is known: then those schedules are left out."""
    file = known.settings.ranges
    if known.own or file is None or not any(schedule.int8 for schedule in known.settings.schedules):
        return
    if has_ranges(file, trunk.net):
        return
    tell("looking at images for schedules in int8")
    try:
        images = [_images_of(plan, known.tasks, name) for name in known.columns]
        keep_ranges(file, trunk.net, known.parameters, images, plan.seed)
    except (ConfigError, DataError, OSError, ValueError) as error:
        if known.profile is None:
            raise
        LOG.warning("event=int8_left_out reason=%r", f"its ranges could not be measured: {first_line(error)}")


def chosen_engine(
    trunk: Trunk, parameters: dict[str, TaskParameters], settings: EngineSettings, tell: OnProgress
) -> Engine:
    """Not warm yet. Raises ConfigError for a backend that is not possible here."""
    tell("choosing the fastest way to run the network")
    with as_mistake("--backend"):
        return Engine(trunk.net, parameters, settings)


def profile_of(plan: ServePlan, known: KnownTrunk, engine: Engine, tell: OnProgress) -> Profile:
    """The known profile, compared with times of now, or a new one."""
    if known.profile is None:
        return _measure(plan, known.trunk, engine, known.tasks, tuple(known.columns), known.file, tell)
    if not known.own:
        LOG.info("event=profile_found file=%s", known.file)
        tell("comparing the kept profile with times of now")
        _warn_if_stale(engine, known.profile)
    return known.profile


def _settings(
    plan: ServePlan, trunk: Trunk, parameters: dict[str, TaskParameters], given: Profile | None
) -> EngineSettings:
    net = trunk.net
    with as_mistake("--profile, --schedules or --batches"):
        precision: Any = plan.precision  # checked
        settings = EngineSettings(
            (constant_schedule(0, net.layers),),
            whole_numbers("--batches", plan.batches),
            plan.device,
            precision,
            plan.backend,
            memory=plan.memory_budget,
        )
        if given is None:
            schedules = chosen_schedules(plan.schedules, net, parameters, int8_fits(net, settings))
        else:
            schedules = tuple(parse_schedule(one.name, net.layers) for one in given.schedules)
        if plan.memory_budget is not None:
            schedules = _without_int8(schedules)
        return replace(settings, schedules=check_distinct(schedules, net.patches))


def _without_int8(schedules: Sequence[TokenSchedule]) -> tuple[TokenSchedule, ...]:
    """What a trunk that comes and goes is loaded with. Raises ValueError if nothing is left."""
    left_out = [schedule.name for schedule in schedules if schedule.int8]
    if len(left_out) == len(schedules):
        raise ValueError("--memory-budget: schedules in int8 do not go with it: name others")
    if left_out:
        LOG.warning("event=int8_left_out schedules=%s reason='a memory budget'", ",".join(left_out))
    return tuple(schedule for schedule in schedules if not schedule.int8)


def _columns(plan: ServePlan, tasks: Mapping[str, TaskVersion], given: Profile | None) -> dict[str, str]:
    """The tasks of the profile, and the version that is measured of each."""
    if given is not None:
        return {name: tasks[name].fingerprint for name in given.tasks if name in tasks}
    places = dict(pair(text) for text in plan.images)
    known = [name for name in tasks if name in places or name in KNOWN_TASKS]
    if not known:
        first = next(iter(tasks))
        raise ConfigError(
            f"{first}: no images to measure with; give --images {first}=PATH, or --profile FILE"
        )
    return {name: tasks[name].fingerprint for name in known}


def _engine_text(settings: EngineSettings) -> str:
    asked = f"{settings.torch_device} {settings.precision} {settings.backend}"
    return f"{hardware()} {cpu_model()} {asked} {torch.get_num_threads()} threads, {_libraries(settings)}"


def _key(
    plan: ServePlan, trunk: Trunk, settings: EngineSettings, columns: Mapping[str, str], engine: str
) -> ProfileKey:
    return ProfileKey(
        trunk.fingerprint,
        tuple(sorted(columns.items())),
        tuple(schedule.name for schedule in settings.schedules),
        settings.batch_buckets,
        (plan.val_images, plan.seed),
        engine,
    )


def _libraries(settings: EngineSettings) -> str:
    """Those that the backend asked for may use, with their versions."""
    names = ("torch", "openvino") if settings.backend == "auto" else (settings.backend,)
    found = []
    for name in names:
        with suppress(PackageNotFoundError):  # a build under another name says no version
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def _measure(
    plan: ServePlan,
    trunk: Trunk,
    engine: Engine,
    tasks: Mapping[str, TaskVersion],
    known: Sequence[str],
    file: Path,
    tell: OnProgress,
) -> Profile:
    """A new profile, kept in the file."""
    for name in set(tasks) - set(known):
        LOG.warning("event=task_not_measured task=%s hint='give --images %s=PATH'", name, name)
    LOG.info("event=profiling tasks=%s schedules=%d", ",".join(known), len(engine.settings.schedules))
    tell("reading the validation images")
    validation: Validation = {
        name: (loaded.images, loaded.labels)
        for name in known
        for loaded in [_images_of(plan, tasks, name).load("val", plan.val_images, plan.seed)]
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
    return profile


def _images_of(plan: ServePlan, tasks: Mapping[str, TaskVersion], name: str) -> ImageTask:
    places = dict(pair(text) for text in plan.images)
    return find_images(name, places.get(name)).with_classes(tasks[name].class_names)


def _write(file: Path, profile: Profile) -> None:
    replace_text(file, json.dumps(profile_to_plain(profile), indent=1))


def _warn_if_stale(engine: Engine, profile: Profile) -> None:
    """Its fastest and its slowest schedule are timed again: a busy machine may have measured it, or be busy now."""
    runs = {schedule.name for schedule in engine.settings.schedules}
    useful = [one for one in profile.useful if one.name in runs]
    if not useful:  # all of them in int8, and what that needs is gone
        return
    ends = dict.fromkeys((useful[0], useful[-1]))
    few = engine.settings.batch_buckets[:2]  # small batches: a start need not wait for large ones
    ratios = time_ratios(engine, replace(profile, schedules=tuple(ends)), rounds=3, sizes=few, looks=1)
    worst = max(ratios, key=lambda name: abs(math.log(ratios[name])))
    if not 1 / STALE < ratios[worst] < STALE:
        LOG.warning(
            "event=profile_stale schedule=%s now_over_stored=%.2f "
            "hint='it is timed again while the server is idle'",
            worst, ratios[worst],
        )  # fmt: skip
