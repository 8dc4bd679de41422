"""The execution engine: one forward pass per batch of mixed tasks, at the given token schedule.

Everything that can be decided before the first request is decided then: precision and kind of linear layers are
measured, and every (schedule, batch size) shape is run once before ``ready``. A batch sees one task bank from beginning
to end, so tasks can be swapped while it runs. Each row gets its own prediction; a row that cannot be served does not
disturb others.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from statistics import median
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedstill.cloud_server.serving.engine.captured_forward import CapturedForward
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.packed_linear import can_pack, pack_linears
from fedstill.models.vit.schedules import TokenSchedule, check_distinct, constant_schedule
from fedstill.models.vit.task_bank import TaskBank, TaskParameters

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]
TRIAL_BATCH, TRIAL_ROUNDS = 8, 5
HOPELESS = 3.0
"""A variant this many times slower than the fastest one in its first run is not worth further runs."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine runs.

    Attributes:
        schedules: all that it may be asked for.
        batch_buckets: batch sizes to warm up, ascending; the last is the largest batch. On CUDA a batch is
            padded to the next of them and replayed as a graph.
        device: torch device name; ``auto`` is CUDA if there is a device.
        precision: ``auto`` takes bf16 if a trial run is faster than fp32.

    Raises:
        ValueError: no schedule, or buckets that are not ascending from at least 1.
    """

    schedules: tuple[TokenSchedule, ...]
    batch_buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    device: str = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if not self.schedules:
            raise ValueError("schedules: none given")
        sizes = self.batch_buckets
        if not sizes or sizes[0] < 1 or any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"batch_buckets: {sizes} are not ascending from at least 1")

    @property
    def torch_device(self) -> torch.device:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(name)


class Engine:
    """Runs batches on one device. ``infer`` may be called from several threads; one batch runs at a time.

    Args:
        net: with fp32 weights; it is copied, not changed.
        tasks: by name.

    Raises:
        ValueError: two schedules that are the same forward pass, or a task made for another trunk.
    """

    def __init__(self, net: ElasticViT, tasks: dict[str, TaskParameters], settings: EngineSettings) -> None:
        check_distinct(settings.schedules, net.patches)
        self.settings = settings
        self.device = settings.torch_device
        self.ready = False
        self._lock = threading.Lock()
        self._graphs: dict[tuple[TokenSchedule, int], CapturedForward] = {}
        self.net, self.dtype, self.variant = _fastest(net, settings)
        self._bank = self._make_bank(tasks)

    @property
    def bank(self) -> TaskBank:
        """The tasks that the next batch will see."""
        return self._bank

    @property
    def maximum_batch(self) -> int:
        return self.settings.batch_buckets[-1]

    def swap(self, tasks: dict[str, TaskParameters]) -> None:
        """Serve these tasks from the next batch on; a running batch keeps the tasks that it began with.

        Raises:
            ValueError: a task made for another trunk; the old tasks stay.
        """
        self._bank = self._make_bank(tasks)
        log.info("tasks swapped tasks=%s", ",".join(self._bank.names))

    @torch.inference_mode()
    def warm_up(self) -> float:
        """Run every (schedule, bucket) once, or capture it as a graph on CUDA; then ``ready``. Returns seconds."""
        started = time.perf_counter()
        with self._lock:
            for schedule, size in product(self.settings.schedules, reversed(self.settings.batch_buckets)):
                images = self._images(torch.zeros(size, 3, self.net.image_size, self.net.image_size))
                prompts = self._empty_prompts(size, schedule)
                if self.device.type == "cuda":
                    self._graphs[schedule, size] = CapturedForward(self.net, images, schedule, prompts)
                else:
                    self.net.features(images, schedule, prompts)
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
            _rejection(bank, name, schedule) or (None if finite else _BAD_IMAGE)
            for name, finite in zip(tasks, _finite_rows(images), strict=True)
        ]
        served = [row for row, result in enumerate(results) if result is None]
        if served:
            names = [tasks[row] for row in served]
            rows = bank.rows(names)
            chosen = images if len(served) == len(images) else images[served]
            with self._lock:
                features = self._features(chosen, schedule, bank.prompts(rows, schedule.prompts))
                logits = bank.logits(features, rows).cpu().numpy()
            for row, name, values in zip(served, names, logits, strict=True):
                classes = bank.tasks[name].class_names
                mine = values[: len(classes)]
                results[row] = Prediction(mine, classes) if np.isfinite(mine).all() else _OUT_OF_RANGE
        return [result for result in results if result is not None]

    def _features(self, images: Tensor, schedule: TokenSchedule, prompts: Tensor | None) -> Tensor:
        on_device = self._images(images)
        if not self._graphs:
            return self.net.features(on_device, schedule, prompts)
        bucket = next(size for size in self.settings.batch_buckets if size >= len(images))
        return self._graphs[schedule, bucket](on_device, prompts)

    def _images(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype)

    def _empty_prompts(self, size: int, schedule: TokenSchedule) -> Tensor | None:
        if not schedule.prompts:
            return None
        shape = (size, self.net.layers, schedule.prompts, self.net.width)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

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


_BAD_IMAGE = Rejection("bad_image", message="the image holds NaN or infinity")
_OUT_OF_RANGE = Rejection("bad_image", message="the image holds values too large to compute with")


def _finite_rows(images: Tensor) -> list[bool]:
    """Whether all values of an image are finite: a sum is, unless one of them is not (or they are absurd)."""
    finite: list[bool] = images.flatten(1).float().sum(dim=1).isfinite().tolist()
    return finite


def _rejection(bank: TaskBank, name: str, schedule: TokenSchedule) -> Rejection | None:
    if name not in bank:
        return Rejection("unknown_task", message=f"task {name!r} is not registered")
    if bank.lacking([name], schedule.prompts):
        return Rejection("no_prompts", message=f"task {name!r} has no set of {schedule.prompts} prompts")
    return None


def _fastest(net: ElasticViT, settings: EngineSettings) -> tuple[ElasticViT, torch.dtype, str]:
    """The variant of ``net`` that a trial batch runs through fastest, of those that the settings allow."""
    device = settings.torch_device
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    allowed = [name for name in dtypes if settings.precision in ("auto", name)]
    variants: dict[str, tuple[ElasticViT, torch.dtype]] = {}
    for name in allowed:
        dtype = dtypes[name]
        ready = copy.deepcopy(net).to(device, dtype).eval().requires_grad_(False)
        variants[name] = (ready, dtype)
        if device.type == "cpu" and can_pack(dtype):
            variants[f"{name} packed"] = (pack_linears(copy.deepcopy(ready)), dtype)
    seconds = _trial(variants, device) if len(variants) > 1 else dict.fromkeys(variants, 0.0)
    best = min(seconds, key=lambda name: seconds[name])
    log.info("engine variants %s", " ".join(f"{name}={1e3 * t:.1f}ms" for name, t in seconds.items()))
    return (*variants[best], best)


@torch.inference_mode()
def _trial(variants: dict[str, tuple[ElasticViT, torch.dtype]], device: torch.device) -> dict[str, float]:
    """Median seconds of a plain batch per variant, interleaved so that a busy neighbour slows all of them.

    A variant that is far behind after its first run (bf16 on a CPU without it) is not run again.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    contenders = dict(variants)
    for turn in range(TRIAL_ROUNDS + 1):
        for name, (net, dtype) in contenders.items():
            images = torch.zeros(TRIAL_BATCH, 3, net.image_size, net.image_size, device=device, dtype=dtype)
            started = time.perf_counter()
            net.features(images, constant_schedule(0, net.layers))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - started)
        if not turn:
            best = min(times[0] for times in seconds.values())
            contenders = {name: v for name, v in variants.items() if seconds[name][0] < HOPELESS * best}
    return {name: median(times[1:] or times) for name, times in seconds.items()}  # the first is warm-up
