"""A small serving tier for tests: a registry with two tasks of random heads, and a server inside this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.serving_server import ListenAddress, Parts, Ports, ServingServer
from fedstill.cloud_server.serving.endpoints.serving_service import ServingService
from fedstill.cloud_server.serving.endpoints.starting import StartProgress
from fedstill.cloud_server.serving.endpoints.task_statistics import TaskStatistics
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.monitoring.monitor import Monitor
from fedstill.cloud_server.serving.monitoring.web import make_app
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.server.decision_log import DecisionLog
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.live_profile import fit_profile
from fedstill.cloud_server.serving.server.live_tasks import LiveTasks
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics
from fedstill.cloud_server.serving.server.traces import Traces
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import constant_schedule
from helpers.vit import LAYERS, task, tiny_trunk

SIZE = 32
TRUNK = "0" * 64
TASKS = {"cats": 3, "dogs": 2}
"""And their classes."""


def png(seed: int = 0, side: int = 40) -> bytes:
    """A noisy square."""
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class MadeServer:
    """What a test may look at while it runs."""

    ports: Ports
    registry: TaskRegistry
    dispatcher: Dispatcher
    tasks: LiveTasks
    metrics: ServingMetrics
    engine: Engine
    decisions: Path
    log: DecisionLog
    monitor: Monitor

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.ports.rest}"


@contextmanager
def serving(
    folder: Path,
    policy: str = "fedstill",
    access: AccessPolicy | None = None,
    waiting: int = 256,
    traces: Traces | None = None,
) -> Iterator[MadeServer]:
    """Serve ``TASKS`` on loopback while inside; drained at the end."""
    torch.set_num_threads(1)
    registry = TaskRegistry(folder / "tasks")
    for seed, (name, classes) in enumerate(TASKS.items()):
        registry.register(name, task(classes, seed), TRUNK, accuracy=0.9, utility=0.5)
    generation, served = registry.generation(), registry.active()
    schedules = {one.name: one for one in (constant_schedule(delta, LAYERS) for delta in (0, -2, -4))}
    engine = Engine(
        ElasticViT(tiny_trunk()),
        registry.load_active(TRUNK),
        EngineSettings(tuple(schedules.values()), (1, 4, 16), "cpu", "fp32"),
    )
    engine.warm_up()
    measured = Profile(
        "made",
        "by hand",
        tuple(TASKS),
        tuple(
            Schedule(name, delta, 0.001, 0.0005 + 0.0001 * delta, (0.9 + 0.01 * delta,) * len(TASKS), 16)
            for name, delta in zip(schedules, (0, -2, -4), strict=True)
        ),
    )
    columns = {name: version.parameters for name, version in served.items()}
    metrics, monitor = ServingMetrics(policy), Monitor(policy)
    statistics = TaskStatistics((metrics.took, monitor.recorder.took))
    decisions = DecisionLog(folder / "decisions.jsonl")
    with ThreadPoolExecutor(1) as preparing:

        def infer(images: Sequence[Any], tasks: Sequence[str], name: str) -> Sequence[Any]:
            return engine.infer(torch.stack(list(images)), tasks, schedules[name])

        dispatcher = Dispatcher(
            make_policy(policy, fit_profile(measured, columns, served, schedules, 16)),
            infer,
            preparing,
            (metrics, decisions, statistics, monitor.recorder),
            waiting,
        )
        tasks = LiveTasks(
            registry,
            engine,
            dispatcher,
            TRUNK,
            measured,
            columns,
            served,
            generation,
            partial(make_policy, policy),
        )
        metrics.queued, metrics.tasks = dispatcher.queued, lambda: tuple(tasks.served)
        monitor.serve(dispatcher, tasks)
        service = ServingService(
            dispatcher, tasks, access or AccessPolicy(None), statistics, SIZE, policy, traces
        )
        app = make_app(metrics, lambda: service.ready, monitor=monitor)
        address = ListenAddress(("127.0.0.1", 0), ("127.0.0.1", 0), ("127.0.0.1", 0))
        server = ServingServer(StartProgress(), app, address)
        with running(server, Parts(service, dispatcher, tasks)) as ports:
            file = folder / "decisions.jsonl"
            yield MadeServer(ports, registry, dispatcher, tasks, metrics, engine, file, decisions, monitor)
    decisions.close()
    registry.close()


@contextmanager
def running(server: ServingServer, parts: Parts) -> Iterator[Ports]:
    """In a thread with an event loop of its own."""
    opened: Future[Ports] = Future()
    loop = asyncio.new_event_loop()
    leave = asyncio.Event()

    async def serve() -> None:
        try:
            ports = await server.start()
            await server.prepare(lambda: parts)
            opened.set_result(ports)
        except Exception as error:
            opened.set_exception(error)
            return
        await leave.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield opened.result(60)
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
        loop.close()
