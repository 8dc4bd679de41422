"""The execution engine: one forward pass per batch of mixed tasks, at the given token schedule.

Everything that can be decided before the first request is decided then: what runs the trunk is measured
(``variants.py``), and every (schedule, batch size) shape is run once before ``ready``. A batch sees one task bank from
beginning to end, so tasks can be swapped while it runs. Each row gets its own prediction; a row that cannot be served
does not disturb others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedstill.cloud_server.serving.engine.backend import Backend
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.openvino_backend import forget_traces
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.variants import make_backend
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule, check_distinct
from fedstill.models.vit.task_bank import TaskBank, TaskParameters
from fedstill.models.vit.without_weights import without_weights

log = logging.getLogger(__name__)

LARGEST_VALUE = 1e6
"""Of a normalised image, in which 10 is a lot. From here on it is a question of precision whether sums are finite."""


class Engine:
    """Runs batches on one device. ``infer`` may be called from several threads; one batch runs at a time.

    Args:
        net: with fp32 weights; it is copied, not changed.
        tasks: by name.

    Raises:
        ValueError: two schedules that are the same forward pass, a task made for another trunk, or a backend that is
            not possible here.
    """

    def __init__(self, net: ElasticViT, tasks: dict[str, TaskParameters], settings: EngineSettings) -> None:
        check_distinct(settings.schedules, net.patches)
        self.net = without_weights(net)
        """Its sizes; the backend has the weights."""
        self.ready = False
        self._lock = threading.Lock()
        self._backend, self.variant = make_backend(net, settings)
        self.settings = _that_it_runs(self._backend, settings)
        """Without schedules in int8 if the backend runs none."""
        self.device, self.dtype = self._backend.device, self._backend.dtype
        self._bank = self._make_bank(tasks)

    @property
    def bank(self) -> TaskBank:
        """The tasks that the next batch will see."""
        return self._bank

    @property
    def maximum_batch(self) -> int:
        return self.settings.maximum_batch

    def swap(self, tasks: dict[str, TaskParameters]) -> None:
        """Serve these tasks from the next batch on; a running batch keeps the tasks that it began with.

        Raises:
            ValueError: a task made for another trunk; the old tasks stay.
        """
        self._bank = self._make_bank(tasks)
        log.info("tasks swapped tasks=%s", ",".join(self._bank.names))

    @torch.inference_mode()
    def warm_up(self, progress: Callable[[str], None] | None = None) -> float:
        """Have the backend do now what a first batch would wait for; then ``ready``. Returns seconds.

        progress: called with a line for a person before each schedule.
        """
        started = time.perf_counter()
        schedules = self.settings.schedules
        with self._lock:
            for number, schedule in enumerate(schedules, 1):
                if progress is not None:
                    progress(f"warming up schedule {schedule.name}, {number} of {len(schedules)}")
                self._backend.warm_up(schedule, self.settings.batch_buckets)
        forget_traces()  # of this backend, or of one that was tried before it was chosen
        self.ready = True
        seconds = time.perf_counter() - started
        log.info("engine ready variant=%s device=%s seconds=%.1f", self.variant, self.device, seconds)
        return seconds

    @torch.inference_mode()
    def infer(
        self, images: Tensor, tasks: Sequence[str], schedule: TokenSchedule
    ) -> list[Prediction | Rejection]:
        """One prediction or rejection per row, in order.

        Args:
            images: float (rows, 3, image_size, image_size), normalised; rows <= maximum_batch.
            tasks: name of each row's task.
            schedule: one of the settings' schedules.

        Raises:
            ValueError: a batch of the wrong shape or size, or a schedule that was never warmed up: mistakes of
                the caller, not of a request.
        """
        self._check(images, tasks, schedule)
        bank = self._bank  # one bank for the whole batch, even if tasks are swapped meanwhile
        results: list[Prediction | Rejection | None] = [
            _rejection(bank, name, schedule) or bad
            for name, bad in zip(tasks, _bad_rows(images), strict=True)
        ]
        served = [row for row, result in enumerate(results) if result is None]
        if served:
            names = [tasks[row] for row in served]
            rows = bank.rows(names)
            chosen = images if len(served) == len(images) else images[served]
            with self._lock:
                features = self._backend.features(chosen, schedule, bank.prompts(rows, schedule.prompts))
                logits = bank.logits(features, rows).cpu().numpy()
            for place, (row, name) in enumerate(zip(served, names, strict=True)):
                task = bank.tasks[name]
                embedded = task.output == "embedding"
                mine = features[place].float().cpu().numpy() if embedded else logits[place]
                mine = mine if embedded else mine[: len(task.class_names)]
                good = np.isfinite(mine).all()
                results[row] = Prediction(mine, task.class_names, task.output) if good else _OUT_OF_RANGE
        return [result for result in results if result is not None]

    def _make_bank(self, tasks: dict[str, TaskParameters]) -> TaskBank:
        return TaskBank(tasks, self.net.layers, self.net.width, self.device, self.dtype)

    def _check(self, images: Tensor, tasks: Sequence[str], schedule: TokenSchedule) -> None:
        side = self.net.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side) or len(images) != len(tasks):
            raise ValueError(f"images: shape {tuple(images.shape)} for {len(tasks)} tasks and {side} pixels")
        if not 0 < len(images) <= self.maximum_batch:
            raise ValueError(f"images: a batch of {len(images)} is not between 1 and {self.maximum_batch}")
        if schedule not in self.settings.schedules:
            known = ", ".join(known.name for known in self.settings.schedules)
            raise ValueError(f"schedule: {schedule.name} is not one of {known}")


def _that_it_runs(backend: Backend, settings: EngineSettings) -> EngineSettings:
    """Raises ValueError if nothing is left."""
    left_out = [schedule.name for schedule in settings.schedules if schedule.int8]
    if backend.int8 or not left_out:
        return settings
    kept = tuple(schedule for schedule in settings.schedules if not schedule.int8)
    if not kept:
        raise ValueError("schedules: int8 needs OpenVINO, and images to measure with: name others, too")
    log.warning("event=int8_left_out schedules=%s reason='the engine does not run int8'", ",".join(left_out))
    return replace(settings, schedules=kept)


_BAD_IMAGE = Rejection("bad_image", message="the image holds NaN or infinity")
_OUT_OF_RANGE = Rejection("bad_image", message="the image holds values too large to compute with")


def _bad_rows(images: Tensor) -> list[Rejection | None]:
    """What is wrong with each image, before a backend sees it: some make an answer even of infinity.

    By NumPy: ``aminmax`` of rows takes 0.3 ms an image in torch 2.11, twenty times as long, and torch's threads spin
    for a while after they have helped, on the cores that a backend of other threads needs.
    """
    found: list[Rejection | None] = []
    flat = images.flatten(1).numpy()
    for smallest, largest in zip(flat.min(axis=1).tolist(), flat.max(axis=1).tolist(), strict=True):
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            found.append(_BAD_IMAGE)
        else:
            found.append(_OUT_OF_RANGE if max(-smallest, largest) > LARGEST_VALUE else None)
    return found


def _rejection(bank: TaskBank, name: str, schedule: TokenSchedule) -> Rejection | None:
    if name not in bank:
        return Rejection("unknown_task", message=f"task {name!r} is not registered")
    if bank.lacking([name], schedule.prompts):
        return Rejection("no_prompts", message=f"task {name!r} has no set of {schedule.prompts} prompts")
    return None
