"""From what the operator typed to a running server: trunk, tasks, engine, profile, policy, in this order.

Nothing listens before everything is measured and warm, so who can connect is served.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from fedstill.cloud_server.authority import read_authority
from fedstill.cloud_server.doorkeeper import Doorkeeper
from fedstill.cloud_server.inference_server import ServerTls
from fedstill.cloud_server.serving.answers import Answer, Refusal
from fedstill.cloud_server.serving.decision_log import DecisionLog
from fedstill.cloud_server.serving.dispatcher import Dispatcher
from fedstill.cloud_server.serving.engine import Engine, EngineSettings, Precision
from fedstill.cloud_server.serving.live_profile import ProfileKey, Validation, fit_profile, measure_profile
from fedstill.cloud_server.serving.live_tasks import LiveTasks
from fedstill.cloud_server.serving.policies import POLICIES, make_policy
from fedstill.cloud_server.serving.profile import Profile, profile_to_plain, read_profile
from fedstill.cloud_server.serving.registry import TaskVersion
from fedstill.cloud_server.serving.serving_metrics import ServingMetrics
from fedstill.cloud_server.serving.serving_server import (
    Ports,
    ServingAddress,
    ServingServer,
    run_until_signalled,
)
from fedstill.cloud_server.serving.serving_service import ServingDoor, ServingService
from fedstill.cloud_server.serving.trunk import Trunk, load_trunk
from fedstill.cloud_server.serving.web import make_app
from fedstill.datasets.image_tasks import KNOWN_TASKS
from fedstill.models.schedules import TokenSchedule, parse_schedule
from fedstill.models.task_bank import TaskParameters
from fedstill.protos.child import sole_user
from fedstill.simulation.config import ConfigError, data_path
from fedstill.simulation.files import write_text_atomically
from fedstill.simulation.provenance import hardware
from fedstill.simulation.tasks_command import (
    as_mistake,
    chosen_schedules,
    find_images,
    open_registry,
    pair,
    whole_numbers,
)

LOG = logging.getLogger(__name__)

SERVER_FILE = "server.json"
DECISIONS_FILE = "decisions.jsonl"
PREPARING_THREADS = 2
SWITCH_SECONDS = 2e-5
"""How long a thread may keep the interpreter while another wants it. Every operator of a batch takes it anew, so at
Python's 5 ms a busy event loop makes a batch tens of times slower (benchmarks/serving_switching.py)."""


@dataclass(frozen=True)
class ServePlan:
    """What was typed; see ``fedstill serve --help``."""

    state: Path
    listen: tuple[str, int]
    web: tuple[str, int] | None
    policy: str
    authority: Path | None
    operators: frozenset[str]
    weights: str
    architecture: str | None
    device: str
    precision: str
    profile: Path | None
    schedules: str | None
    batches: str
    images: tuple[str, ...]
    val_images: int
    seed: int
    waiting: int
    drain_seconds: float

    def check(self) -> None:
        """What can be seen at a glance. Raises ConfigError."""
        if self.policy not in POLICIES:
            raise ConfigError(
                f"--policy: unknown policy {self.policy!r} (known: {', '.join(_live_policies())})"
            )
        if self.policy not in _live_policies():
            raise ConfigError(
                f"--policy {self.policy}: switches between whole models, and a server has one trunk; "
                f"compare it with: fedstill loadtest --virtual --policies {self.policy}"
            )
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"--precision: {self.precision!r} is not one of {', '.join(get_args(Precision))}"
            )
        if self.device not in ("auto", "cpu") and not (
            self.device.startswith("cuda") and torch.cuda.is_available()
        ):
            raise ConfigError(f"--device: {self.device!r} is not here: use auto, cpu or cuda")
        for text in self.images:
            pair(text)
        if not whole_numbers("--batches", self.batches):
            raise ConfigError("--batches: name at least one batch size")
        open_registry(self.state).close()


def run_serving(plan: ServePlan) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError, DataError, CredentialError, FolderInUse, ServerError."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # nobody is served yet, so there is nothing to bring to an end
    sys.setswitchinterval(SWITCH_SECONDS)
    authority = read_authority(plan.authority) if plan.authority is not None else None
    for warning in authority.warnings if authority else ():
        LOG.warning("event=unwise reason=%r", warning)
    with sole_user(plan.state / "serve"):
        registry = open_registry(plan.state)
        trunk = load_trunk(data_path(plan.weights), plan.architecture)
        generation = registry.generation()
        tasks = registry.active()
        parameters = registry.load_active(trunk.fingerprint)
        if not tasks or parameters.keys() != tasks.keys():
            raise ConfigError(f"{plan.state}: serves no task; add one with: fedstill tasks add NAME")
        given = read_profile(plan.profile) if plan.profile is not None else None
        engine = _make_engine(plan, trunk, parameters, given)
        engine.warm_up()
        measured, columns = _profile(plan, trunk, engine, tasks, given)
        schedules = {schedule.name: schedule for schedule in engine.settings.schedules}
        profile = fit_profile(measured, columns, tasks, schedules, engine.maximum_batch)
        metrics = ServingMetrics(plan.policy)
        decisions = DecisionLog(plan.state / "serve" / DECISIONS_FILE)
        with ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="images") as preparing:
            dispatcher = Dispatcher(
                make_policy(plan.policy, profile),
                partial(_infer, engine, schedules),
                preparing,
                (metrics, decisions),
                plan.waiting,
            )
            live = LiveTasks(
                registry, engine, dispatcher, trunk.fingerprint, measured, columns, tasks, generation,
                partial(make_policy, plan.policy),
            )  # fmt: skip
            metrics.queued, metrics.tasks = dispatcher.queued, live.names
            door = ServingDoor(Doorkeeper(authority) if authority else None, plan.operators)
            service = ServingService(dispatcher, live, door, engine.net.image_size, plan.policy)
            tls = (
                ServerTls(authority.key_file.read_bytes(), authority.certificate_file.read_bytes())
                if authority
                else None
            )
            server = ServingServer(
                service,
                dispatcher,
                live,
                make_app(metrics, lambda: service.ready),
                ServingAddress(plan.listen, plan.web, tls, plan.drain_seconds, 4 * plan.waiting),
            )
            try:
                run_until_signalled(server, partial(_announce, plan))
            finally:
                (plan.state / "serve" / SERVER_FILE).unlink(missing_ok=True)
        decisions.close()
        registry.close()


def _live_policies() -> tuple[str, ...]:
    return tuple(name for name in POLICIES if name != "infaas")


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
    plan: ServePlan, trunk: Trunk, engine: Engine, tasks: Mapping[str, TaskVersion], given: Profile | None
) -> tuple[Profile, dict[str, str]]:
    """The profile, and the parameters that each of its columns belongs to."""
    if given is not None:
        return given, {name: tasks[name].parameters for name in given.tasks if name in tasks}
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
    columns = {name: tasks[name].parameters for name in known}
    key = ProfileKey(
        trunk.fingerprint,
        tuple(sorted(columns.items())),
        tuple(schedule.name for schedule in engine.settings.schedules),
        engine.settings.batch_buckets,
        (plan.val_images, plan.seed),
        f"{hardware()} {engine.device} {engine.dtype} {torch.get_num_threads()} threads",
    )
    file = plan.state / "serve" / f"profile-{key.digest}.json"
    if file.exists():
        LOG.info("event=profile_found file=%s", file)
        return read_profile(file), columns
    for name in set(tasks) - set(known):
        LOG.warning("event=task_not_measured task=%s hint='give --images %s=PATH'", name, name)
    LOG.info("event=profiling tasks=%s schedules=%d", ",".join(known), len(key.schedules))
    validation: Validation = {
        name: (loaded.images, loaded.labels)
        for name in known
        for loaded in [find_images(name, places.get(name)).load("val", plan.val_images, plan.seed)]
    }
    source = f"{trunk.architecture}, {engine.variant}, {hardware()}, {plan.val_images} images per task"
    with as_mistake("--schedules"):
        profile = measure_profile(engine, validation, trunk.architecture, source)
    write_text_atomically(file, json.dumps(profile_to_plain(profile), indent=1))
    LOG.info("event=profile_measured file=%s", file)
    return profile, columns


def _infer(
    engine: Engine,
    schedules: Mapping[str, TokenSchedule],
    images: Sequence[torch.Tensor],
    tasks: Sequence[str],
    schedule: str,
) -> list[Answer | Refusal]:
    return engine.infer(torch.stack(list(images)), tasks, schedules[schedule])


def _announce(plan: ServePlan, ports: Ports) -> None:
    """Say where we are, in the log and in a file for whoever started us."""
    content = {"pid": os.getpid(), "port": ports.grpc, "web_port": ports.web, "policy": plan.policy}
    write_text_atomically(plan.state / "serve" / SERVER_FILE, json.dumps(content))
    LOG.info(
        "event=serving listen=%s port=%d web_port=%s policy=%s tls=%s",
        plan.listen[0], ports.grpc, ports.web, plan.policy, plan.authority is not None,
    )  # fmt: skip
