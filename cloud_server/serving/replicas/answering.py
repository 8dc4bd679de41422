"""A server without ports: the models, their dispatcher and the table of calls, for one replica. No Ray.

It answers what a front passes on, with the code that answers behind gRPC and REST elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from google.protobuf.message import DecodeError

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.app.assembly import parts_of, queue_of
from fedstill.cloud_server.serving.app.load_models import load_models
from fedstill.cloud_server.serving.callers.call import go_on
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.refusals import bad
from fedstill.cloud_server.serving.endpoints.serving_server import watch
from fedstill.cloud_server.serving.endpoints.task_statistics import TaskStatistics
from fedstill.cloud_server.serving.engine.environment import SWITCH_SECONDS
from fedstill.cloud_server.serving.replicas.passed_call import PassedCall, plain_refusal
from fedstill.cloud_server.serving.replicas.replica_plan import ReplicaPlan
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.price import Figures, Offer
from fedstill.cloud_server.serving.scheduling.queries import RejectionReason
from fedstill.cloud_server.serving.server.decision_log import DecisionLog
from fedstill.cloud_server.serving.server.events import RanBatch
from fedstill.cloud_server.serving.server.image_workers import ImageWorkers
from fedstill.cloud_server.serving.server.traces import Traces
from fedstill.cloud_server.serving.tasks.registry import TaskVersion

LOG = logging.getLogger(__name__)

BUSY_SECONDS = 10.0
"""Of which the busy share is told."""
REPLICAS_FOLDER = "replicas"
"""Below the server's own files: the decision log of each replica, under its name."""


class BusyTime:
    """An observer: which share of the last moments the engine ran."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._batches: deque[tuple[float, float]] = deque()

    def share(self) -> float:
        """From 0 to 1."""
        now = self._clock()
        while self._batches and self._batches[0][0] < now - BUSY_SECONDS:
            self._batches.popleft()
        window = min(BUSY_SECONDS, max(1.0, now - self._began))
        return min(1.0, sum(seconds for _, seconds in list(self._batches)) / window)

    def ran(self, batch: RanBatch) -> None:
        self._batches.append((self._clock(), batch.seconds))

    def offered(self, task: str, utility: float, queries: int) -> None:
        pass

    def dropped(self, task: str, reason: RejectionReason, queries: int) -> None:
        pass

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        pass


class Answering:
    """Measured and warm once it is made, which takes minutes without a profile. Raises ConfigError, DataError.

    name: of the replica, unique among all; for its decision log.
    """

    def __init__(self, plan: ReplicaPlan, name: str) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        served = plan.serve_plan()
        served.check()
        self._serials = itertools.count(1)
        self._busy = BusyTime()
        with ExitStack() as opened:
            traces = Traces(plan.otlp) if plan.otlp else None
            if traces is not None:
                opened.callback(traces.close)
            statistics = TaskStatistics()
            decisions = DecisionLog(served.folder / REPLICAS_FOLDER / f"{name}.jsonl")
            opened.callback(decisions.close)
            preparing = opened.enter_context(ImageWorkers())
            models = [load_models(served, lambda doing: LOG.info("event=starting doing=%r", doing))]
            opened.callback(models[0].close)
            queue = queue_of(served, models, preparing, (decisions, statistics, self._busy))
            parts = parts_of(served, models, queue, AccessPolicy(None), statistics, traces)
            (self._dispatcher,), self._tasks, self._service = queue.dispatchers, queue.tasks, parts.service
            self._dispatcher.start()
            opened.callback(self._dispatcher.stop)
            self._opened = opened.pop_all()
        self._watching: asyncio.Task[None] | None = None

    async def answer(self, call: PassedCall, content: bytes) -> dict[str, Any]:
        """A response's bytes, or a refusal, as plain values, and the seconds that it took."""
        began = time.monotonic()
        return {**await self._answer(call, content), "seconds": time.monotonic() - began}

    async def _answer(self, call: PassedCall, content: bytes) -> dict[str, Any]:
        self.watch()
        go_on(call.caller())
        try:
            known = (self._service.own_calls if call.own else self._service.calls)[call.method]
            try:
                request = known.form.kind.FromString(content)
            except DecodeError:
                raise bad("message", f"not a {known.form.kind.DESCRIPTOR.name}") from None
            reply = await known.answer(request, call.remaining)
        except RequestError as error:
            return plain_refusal(error)
        return {"reply": reply.SerializeToString()}

    def watch(self) -> None:
        """Look at the registry from now on, in the running event loop."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(watch(self._tasks))

    def figures(self) -> Figures:
        """What to publish now."""
        policy = self._dispatcher.policy
        offers = {
            name: _offer(policy, task) for name, task in self._tasks.served.items() if _knows(policy, name)
        }
        return Figures(
            next(self._serials), policy.price, self._dispatcher.backlog(), self._busy.share(), offers
        )

    def close(self) -> None:
        """Refuse whatever still waits, and close."""
        if self._watching is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended before
                self._watching.cancel()
        self._opened.close()


def _knows(policy: Policy, task: str) -> bool:
    return task in policy.profile.tasks


def _offer(policy: Policy, task: TaskVersion) -> Offer:
    place = policy.profile.task_index(task.name)
    return Offer(task.utility, task.latency_ms, policy.offers(place))
