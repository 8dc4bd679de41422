"""The share of the engine's time that a saturated server spends outside the forward pass.

The real dispatcher, policy, image preparation and engine (random weights: times do not depend on them), always with
more queries waiting than a batch takes; no network. Decisions, waiting for images, stacking, heads and answers all
count as overhead.

    python benchmarks/serving/serving_overhead.py
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import numpy as np
import timm
import torch
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.monitoring.recorder import Recorder
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.live_profile import measure_profile
from fedstill.cloud_server.serving.server.request_images import ImageForm, pixels
from fedstill.cloud_server.serving.server.requests import Outcome
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics
from fedstill.common.provenance import hardware
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import constant_schedule
from fedstill.models.vit.task_bank import TaskParameters

DELTAS = (0, -10, -20)
TASKS = ("cats", "dogs")
LATENCY_SECONDS = 5.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", default="vit_tiny_patch16_224")
    arguments.add_argument("--policies", nargs="+", default=["fedstill", "faithful", "pets"])
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--waiting", type=int, default=128, help="queries that always wait")
    options = arguments.parse_args()
    net = ElasticViT(cast(VisionTransformer, timm.create_model(options.model).eval().requires_grad_(False)))
    generator = torch.Generator().manual_seed(0)
    tasks = {
        name: TaskParameters(tuple("abcde"), torch.randn(5, net.width, generator=generator), torch.zeros(5))
        for name in TASKS
    }
    schedules = tuple(constant_schedule(delta, net.layers) for delta in DELTAS)
    engine = Engine(net, tasks, EngineSettings(schedules, (1, 2, 4, 8, 16), options.device))
    engine.warm_up()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    profile = measured(engine, image, options.model)
    console = Console(highlight=False)
    console.print(f"{options.model}, {engine.variant} on {engine.device}, {hardware()}")
    for policy in options.policies:
        saturated = Saturated(engine, make_policy(policy, profile), options.waiting, image)
        wall, forward, batches, answers = saturated.run(options.seconds)
        console.print(
            f"{policy:<9} {answers / wall:7.1f} answers/s in {batches} batches; "
            f"outside the forward pass {100 * (1 - forward / wall):.1f} % of wall time"
        )


def measured(engine: Engine, image: np.ndarray, name: str) -> Profile:
    """Measured times; accuracies that fall with the tokens, since random heads have none."""
    sets = dict.fromkeys(TASKS, ([image], np.zeros(1, dtype=np.int64)))
    profile = measure_profile(engine, sets, name, "benchmark")
    schedules = (
        replace(one, accuracy=(0.9 + one.token_delta / 200,) * len(TASKS)) for one in profile.schedules
    )
    return replace(profile, schedules=tuple(schedules))


class Saturated:
    """A dispatcher in which a fixed number of queries waits at any time."""

    def __init__(self, engine: Engine, policy: Policy, waiting: int, image: np.ndarray) -> None:
        self._engine, self._waiting, self._image = engine, waiting, image
        self._schedules = {schedule.name: schedule for schedule in engine.settings.schedules}
        self._answers = 0
        self._passes: list[tuple[float, float]] = []
        self._preparing = ThreadPoolExecutor(2)
        self._room = threading.Semaphore(waiting)
        observers = (ServingMetrics("benchmark", tasks=lambda: TASKS), Recorder(lambda: TASKS))
        self._dispatcher = Dispatcher(policy, self._infer, self._preparing, observers, 2 * waiting)

    def run(self, seconds: float) -> tuple[float, float, int, int]:
        """Wall seconds from the end of the first forward pass to the end of the last one, seconds in the passes
        between, batches and answers of all of them."""
        backend = self._engine._backend
        plain = backend.features

        def timed(*arguments: Any) -> torch.Tensor:
            started = time.perf_counter()
            features = plain(*arguments)
            if self._engine.device.type == "cuda":
                torch.cuda.synchronize()
            self._passes.append((started, time.perf_counter()))
            return features

        backend.features = timed  # type: ignore[assignment, method-assign]
        self._dispatcher.start()
        began = time.perf_counter()
        number = 0
        while time.perf_counter() - began < seconds:
            if self._room.acquire(timeout=0.1):
                number += 1
                prepare = pixels(
                    self._image, ImageForm(self._engine.net.image_size, self._engine.net.preprocess)
                )
                self._dispatcher.submit(TASKS[number % 2], [prepare], LATENCY_SECONDS, 1.0, self._answered)
        passes, answers = tuple(self._passes), self._answers
        self._dispatcher.stop()
        self._preparing.shutdown()
        backend.features = plain  # type: ignore[method-assign]
        wall = passes[-1][1] - passes[0][1]
        return wall, sum(end - start for start, end in passes[1:]), len(passes), answers

    def _answered(self, outcome: Outcome) -> None:
        self._answers += 1
        self._room.release()

    def _infer(
        self, images: Sequence[torch.Tensor], tasks: Sequence[str], schedule: str
    ) -> list[Prediction | Rejection]:
        return self._engine.infer(torch.stack(list(images)), tasks, self._schedules[schedule])


if __name__ == "__main__":
    main()
