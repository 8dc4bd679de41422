"""An engine that may be out of memory: its tasks are known and changed all the same, and loading it is measured.

The rest of a server holds this instead of the engine, so that nothing else keeps the weights alive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.memory_limit import resident_bytes
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.free_memory import trim_heap
from fedstill.cloud_server.serving.server.residency import Footprint
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule
from fedstill.models.vit.task_bank import TaskBank, TaskParameters

LOG = logging.getLogger(__name__)

Progress = Callable[[str], None]
Make = Callable[[dict[str, TaskParameters], EngineSettings, Progress], Engine]
"""Reads the weights, and makes a warm engine for these tasks. What ``Progress`` raises ends it early."""


class NotLoaded(Exception):
    """A batch for an engine that is not in memory."""


class ServingEngine(Protocol):
    """What a server needs of an engine. Implemented by ``Engine`` and ``LoadableEngine``."""

    settings: EngineSettings
    net: ElasticViT

    @property
    def ready(self) -> bool:
        """Whether it can run a batch now."""

    @property
    def maximum_batch(self) -> int:
        """Queries."""

    def swap(self, tasks: dict[str, TaskParameters]) -> None:
        """Serve these tasks from the next batch on. Raises ValueError for a task made for another trunk."""

    def infer(
        self, images: Tensor, tasks: Sequence[str], schedule: TokenSchedule
    ) -> list[Prediction | Rejection]:
        """One prediction or rejection per row."""


class LoadableEngine:
    """Safe to call from any thread; ``load`` and ``unload`` from one at a time.

    Args:
        net: its sizes; weights are not needed.
        least: bytes that it takes in any case. What is measured while others allocate and free is not exact.
        keep: stores what a loading has measured.
    """

    def __init__(
        self,
        net: ElasticViT,
        settings: EngineSettings,
        tasks: dict[str, TaskParameters],
        make: Make,
        least: int = 0,
        keep: Callable[[Footprint], None] = lambda _: None,
    ) -> None:
        self.net, self.settings = net, settings
        self._tasks, self._make, self._least, self._keep = tasks, make, least, keep
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    @property
    def ready(self) -> bool:
        return self._engine is not None

    @property
    def maximum_batch(self) -> int:
        return self.settings.maximum_batch

    def swap(self, tasks: dict[str, TaskParameters]) -> None:
        """Serve these tasks, now or once it is loaded. Raises ValueError for a task made for another trunk."""
        TaskBank(tasks, self.net.layers, self.net.width)
        with self._lock:
            self._tasks = tasks
            if self._engine is not None:
                self._engine.swap(tasks)

    def infer(
        self, images: Tensor, tasks: Sequence[str], schedule: TokenSchedule
    ) -> list[Prediction | Rejection]:
        """As ``Engine.infer``. Raises NotLoaded."""
        with self._lock:  # an engine is not unloaded in the middle of a batch
            if self._engine is None:
                raise NotLoaded
            return self._engine.infer(images, tasks, schedule)

    def load(self, progress: Progress = lambda _: None) -> Footprint:
        """Into memory; returns what it took. Raises what ``make`` raises, and then it is not loaded."""
        trim_heap()
        before, began, tasks = resident_bytes(), time.monotonic(), self._tasks
        engine = self._make(tasks, self.settings, progress)
        with self._lock:
            if self._tasks is not tasks:  # swapped meanwhile
                engine.swap(self._tasks)
            self._engine = engine
        seconds = time.monotonic() - began
        trim_heap()
        found = Footprint(max(self._least, resident_bytes() - before), seconds)
        try:
            self._keep(found)
        except OSError as error:  # a full disk: the next start finds it out again
            LOG.error("event=footprint_not_kept reason=%r", str(error))
        return found

    def unload(self) -> None:
        """Out of memory, after the running batch; what it took goes back to the system."""
        with self._lock:
            self._engine = None
        trim_heap()  # the engine itself has no cycles

    def loaded_engine(self) -> Engine:
        """To measure with. Raises NotLoaded."""
        engine = self._engine
        if engine is None:
            raise NotLoaded
        return engine
