"""The elastic model at one schedule with all heads, as other servers serve it in comparisons.

Those servers import nothing else of ours.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import BackendName, EngineSettings
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.datasets.decoding.image_files import read_image
from fedstill.models.vit.preprocess import image_tensor
from fedstill.models.vit.schedules import parse_schedule

BATCH, BATCH_SECONDS = 8, 0.01
"""Of dynamic batching: the largest batch, and how long the first query waits for others."""


class PlainModel:
    """A state folder of ``fedstill serve`` and its trunk, warmed up.

    schedule: token schedule by name, ``0`` for the plain model. backend: ``torch``, ``openvino`` or ``auto``.
    """

    def __init__(
        self, state: Path, weights: Path, schedule: str = "0", backend: BackendName = "torch"
    ) -> None:
        trunk = load_trunk(weights)
        registry = TaskRegistry(state)
        tasks = registry.load_active(trunk.fingerprint)
        registry.close()
        self._schedule = parse_schedule(schedule, trunk.net.layers)
        settings = EngineSettings((self._schedule,), (1, 2, 4, BATCH), backend=backend)
        self._engine = Engine(trunk.net, tasks, settings)
        self._engine.warm_up()

    def answer(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One label per request of task and base64 picture, with the size and the time of their batch."""
        started = time.perf_counter()
        pictures = [read_image(Path("request"), base64.b64decode(request["image"])) for request in requests]
        tasks, size = [request["task"] for request in requests], self._engine.net.image_size
        images = [
            image_tensor(picture, size, self._engine.bank.tasks[task].preprocess)
            for picture, task in zip(pictures, tasks, strict=True)
        ]
        answers = self._engine.infer(torch.stack(images), tasks, self._schedule)
        spent = 1000 * (time.perf_counter() - started)
        return [
            {
                "label": answer.label if isinstance(answer, Prediction) else "",
                "batch": len(requests),
                "ms": spent,
            }
            for answer in answers
        ]
