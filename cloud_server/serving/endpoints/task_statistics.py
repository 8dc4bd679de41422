"""Counts and times per task in Triton's terms, since the start of the server and over all versions of a task."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

from fedstill.cloud_server.serving.scheduling.queries import RejectionReason
from fedstill.cloud_server.serving.server.events import RanBatch
from fedstill.cloud_server.serving.server.requests import Response
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.protos import open_inference_pb2 as pb


@dataclass
class _Sum:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=round(1e9 * self.seconds))


@dataclass
class _Task:
    success: _Sum = field(default_factory=_Sum)
    fail: _Sum = field(default_factory=_Sum)
    queue: _Sum = field(default_factory=_Sum)
    compute: _Sum = field(default_factory=_Sum)
    batches: dict[int, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    """By the size of the whole batch, in which other tasks may have had a part."""
    images: int = 0
    last: float = 0.0


class TaskStatistics:
    """An observer of the dispatcher, for batches; ``TaskQueries`` tells it of requests.

    took: are told of each answered request: its task, and the seconds from its arrival to its answer.
    """

    def __init__(self, took: Sequence[Callable[[str, float], None]] = ()) -> None:
        self._took = took
        self._lock = Lock()
        self._tasks: dict[str, _Task] = {}

    def succeeded(self, task: str, served: Response, seconds: float) -> None:
        """A request was answered. seconds: from arrival to the answer."""
        for tell in self._took:
            tell(task, seconds)
        with self._lock:
            kept = self._kept(task)
            kept.success.add(seconds)
            kept.queue.add(served.waiting_seconds)
            kept.compute.add(served.inference_seconds)
            kept.images += len(served.predictions)
            kept.last = time.time()

    def failed(self, task: str, seconds: float) -> None:
        """A request was refused."""
        with self._lock:
            self._kept(task).fail.add(seconds)

    def offered(self, task: str, utility: float, queries: int) -> None:
        """Counted with its outcome."""

    def dropped(self, task: str, reason: RejectionReason, queries: int) -> None:
        """Counted by `failed`."""

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        """Counted by `succeeded`."""

    def ran(self, batch: RanBatch) -> None:
        """A batch ended."""
        with self._lock:
            for task in batch.tasks:
                self._kept(task).batches[batch.size].add(batch.seconds)

    def message(self, task: TaskVersion) -> pb.ModelStatistics:
        """All that is known of a task."""
        with self._lock:
            kept = self._tasks.get(task.name, _Task())
            requests = pb.StatisticDuration(count=kept.success.count)
            return pb.ModelStatistics(
                name=task.name,
                version=str(task.version),
                last_inference=round(1e3 * kept.last),
                inference_count=kept.images,
                execution_count=sum(one.count for one in kept.batches.values()),
                inference_stats=pb.InferStatistics(
                    success=kept.success.message(),
                    fail=kept.fail.message(),
                    queue=kept.queue.message(),
                    compute_input=requests,  # images are prepared while they wait
                    compute_infer=kept.compute.message(),
                    compute_output=requests,
                ),
                batch_stats=[
                    pb.InferBatchStatistics(
                        batch_size=size,
                        compute_input=pb.StatisticDuration(count=one.count),
                        compute_infer=one.message(),
                        compute_output=pb.StatisticDuration(count=one.count),
                    )
                    for size, one in sorted(kept.batches.items())
                ],
            )

    def _kept(self, task: str) -> _Task:
        return self._tasks.setdefault(task, _Task())
