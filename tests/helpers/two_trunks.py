"""Two trunks, the tasks of each in one registry, and a server in this process that serves both."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from fedstill.cloud_server.serving.app.assembly import assembled
from fedstill.cloud_server.serving.app.load_models import load_devices
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.engine.trunk import Trunk, load_trunk
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, profile_to_plain
from fedstill.cloud_server.serving.server.request_images import ImageForm, encoded
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.models.vit.schedules import constant_schedule
from fedstill.models.vit.task_bank import TaskParameters

LATENCY_MS = 20_000


def random_weights(folder: Path, architecture: str, seed: int = 0, classes: int = 1000) -> Path:
    """A file with random weights of an architecture of timm. classes: of its head, which takes memory and no time."""
    torch.manual_seed(seed)
    file = folder / f"{architecture}.safetensors"
    state = timm.create_model(architecture, num_classes=classes).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    return file


@dataclass(frozen=True)
class Weights:
    """A file of weights, loaded."""

    file: Path
    trunk: Trunk

    @property
    def name(self) -> str:
        """As a server calls it."""
        return self.file.stem

    def head(self, classes: int, seed: int, preprocess: Preprocess | None = None) -> TaskParameters:
        """Random; loud, so that classes differ."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, self.trunk.net.width, generator=generator)
        names = tuple(f"class{number}" for number in range(classes))
        used = preprocess or self.trunk.net.preprocess
        return TaskParameters(names, weight, torch.zeros(classes), {}, used)

    def register(self, state: Path, name: str, classes: int, seed: int) -> TaskParameters:
        """A task in the registry, active."""
        made = self.head(classes, seed)
        registry = TaskRegistry(state)
        registry.register(name, made, self.trunk.fingerprint, accuracy=0.9, latency_ms=LATENCY_MS)
        registry.close()
        return made

    def profile(self, tasks: tuple[str, ...], seconds: float) -> str:
        """A profile by hand, in a file; for --profile."""
        schedules = tuple(
            Schedule(name, delta, 0.002, share * seconds, (0.9 + delta / 200,) * len(tasks), 4)
            for name, delta, share in (("0", 0, 1.0), ("-4", -4, 0.7))
        )
        file = self.file.with_suffix(".profile")
        file.write_text(json.dumps(profile_to_plain(Profile("made", "by hand", tasks, schedules))))
        return f"{self.file}={file}"


def logits_of(weights: Weights, head: TaskParameters, content: bytes, schedule: str) -> np.ndarray:
    """What a task's own trunk says of an encoded image, without a server; float32 (classes,)."""
    net = weights.trunk.net
    image = encoded(content, ImageForm(net.image_size, head.preprocess))()
    with torch.inference_mode():
        features = net.features(image[None], constant_schedule(int(schedule), net.layers), None)
    return (features @ head.head_weight.T + head.head_bias)[0].numpy()


def opened(file: Path) -> Weights:
    return Weights(file, load_trunk(file))


def plan_of(state: Path, weights: Weights, profile: Path, /, **changes: Any) -> ServePlan:
    """Of a server on loopback with all its ports, and without a measurement."""
    plan = ServePlan(
        state=state, warmed=None, listen=("127.0.0.1", 0), web=("127.0.0.1", 0), rest=("127.0.0.1", 0),
        policy="fedstill", authority=None, operators=frozenset(), weights=str(weights.file), architecture=None,
        device="cpu", precision="fp32", backend="torch", profile=profile, schedules=None, batches="1,4",
        images=(), val_images=6, seed=0, waiting=256, lame_duck_seconds=0.0, drain_seconds=5.0,
    )  # fmt: skip
    return replace(plan, **changes)


@dataclass(frozen=True)
class Server:
    """A running one."""

    ports: Any

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"


@contextmanager
def served(plan: ServePlan) -> Iterator[Server]:
    """A whole server in this process, on loopback."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    loop, ports, leave = asyncio.new_event_loop(), Future[Any](), asyncio.Event()

    async def serve() -> None:
        try:
            with assembled(plan, None, None, partial(load_devices, plan)) as made:
                opened_ports = await made.server.start()
                await made.server.prepare(made.make)
                ports.set_result(opened_ports)
                await leave.wait()
                await made.server.stop()
        except BaseException as error:
            if not ports.done():
                ports.set_exception(error)
            raise

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield Server(ports.result(120))
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
        loop.close()


def wait_for(condition: Any, seconds: float = 20) -> None:
    """Until it is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
