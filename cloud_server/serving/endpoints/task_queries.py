"""A query's way through the queue, for every call that asks: its deadline, its worth, its one answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import grpc

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.call import current
from fedstill.cloud_server.serving.callers.rate_limits import RateLimits
from fedstill.cloud_server.serving.endpoints.infer_request import Limits
from fedstill.cloud_server.serving.endpoints.model_names import AskedTask
from fedstill.cloud_server.serving.endpoints.refusals import CODES, FIELDS, bad, missing
from fedstill.cloud_server.serving.endpoints.task_statistics import TaskStatistics
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.request_images import ImageForm
from fedstill.cloud_server.serving.server.requests import Outcome, Prepare, QueryQueue, Response
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks, first_trunk, trunk_of
from fedstill.cloud_server.serving.server.traces import Traces
from fedstill.cloud_server.serving.tasks.registry import TaskVersion

LONGEST_RETRY_MS = 86_400_000
"""A day: a small rate may need years."""


class TaskQueries:
    """Asks the dispatcher. image_size: side of the first trunk's images. limits: by default none."""

    def __init__(
        self,
        dispatcher: QueryQueue,
        tasks: ServedTasks,
        statistics: TaskStatistics,
        image_size: int,
        limits: RateLimits | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._dispatcher, self._tasks, self._statistics = dispatcher, tasks, statistics
        self._size, self._limits = image_size, limits or RateLimits()
        self._traces = traces
        self.retiring = False
        """Whether the server is about to end, although it still takes requests."""

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return not (self.retiring or self._dispatcher.draining)

    def form_of(self, task: str) -> ImageForm:
        """Of a task's images; one that is not served is refused later, by its name."""
        known = self._tasks.served.get(task)
        if known is None:
            return ImageForm(self._size, first_trunk(self._tasks).preprocess)
        return ImageForm(trunk_of(self._tasks, known).image_size, known.preprocess)

    async def ask(self, task: AskedTask, images: Sequence[Prepare], limits: Limits) -> Response:
        """The answer of all images together. Raises RequestError for a refusal; if the caller is cancelled, so is the
        request."""
        caller = current()
        take(self._limits, caller.node, len(images))
        known = self._tasks.served.get(task.name)
        latency_ms, limit = _shortest(limits, known)
        utility = limits.utility if limits.utility is not None else known.utility if known else 0.0
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not answer.done():
                answer.set_result(outcome)

        def deliver(outcome: Outcome) -> None:
            loop.call_soon_threadsafe(settle, outcome)

        began, began_ns = time.monotonic(), time.time_ns()
        request = self._dispatcher.submit(
            task.name, images, latency_ms / 1e3 - caller.elapsed, limits.factor * utility, deliver, caller
        )
        try:
            outcome = await answer
        except asyncio.CancelledError:
            self._dispatcher.cancel(request)
            self._trace(task, images, began_ns, None)
            raise
        seconds = time.monotonic() - began
        self._trace(task, images, began_ns, outcome)
        if isinstance(outcome, Rejection):
            if known is not None:  # other names are clients' words, without end
                self._statistics.failed(task.name, seconds)
            raise _refusal(outcome, limit)
        self._statistics.succeeded(task.name, outcome, seconds)
        if task.version is not None and set(outcome.versions) != {task.version}:
            text = f"{task.version} was replaced by {max(outcome.versions)} while the query waited: ask again"
            raise missing("model_version", text)
        kinds = {(one.output, len(one.logits)) for one in outcome.predictions}
        if len(kinds) > 1 or (known is not None and kinds.pop()[0] != known.output):
            text = f"{task.name} was replaced by one of other classes while the query waited: ask again"
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "", text)
        return outcome

    def _trace(self, task: AskedTask, images: Sequence[Prepare], began: int, outcome: Outcome | None) -> None:
        if self._traces is not None:
            self._traces.request(current(), task.name, len(images), began, outcome)


def take(limits: RateLimits, node: str, queries: int) -> None:
    """Raises RequestError if the node's token has asked too much."""
    seconds = limits.take(node, queries)
    rate = limits.rate(node)
    if seconds == 0 or rate is None:
        return
    may = f"{node} may ask {rate.per_second:g} queries per second, {rate.burst:g} at once"
    if math.isinf(seconds):
        raise bad("inputs", f"{queries} images in one request: {may}")
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = min(max(1, math.ceil(1e3 * seconds)), LONGEST_RETRY_MS)
    raise RequestError(code, "", f"rate limit: {may}", retry)


def _shortest(limits: Limits, known: TaskVersion | None) -> tuple[float, str]:
    """Milliseconds until the deadline, and the name of what sets it."""
    own = limits.latency_ms if limits.latency_ms is not None else known.latency_ms if known else 0.0
    given = {"latency_ms": own, "timeout": limits.timeout_ms, "the call's deadline": limits.remaining_ms}
    there = {name: milliseconds for name, milliseconds in given.items() if milliseconds is not None}
    limit = min(there, key=lambda name: there[name])
    return there[limit], limit


def _refusal(rejection: Rejection, limit: str) -> RequestError:
    code = CODES[rejection.reason]
    field = limit if code is grpc.StatusCode.DEADLINE_EXCEEDED else FIELDS.get(rejection.reason, "")
    hint = code is grpc.StatusCode.RESOURCE_EXHAUSTED or rejection.reason == "loading"
    retry = max(1, math.ceil(1e3 * rejection.retry_after_seconds)) if hint else 0
    return RequestError(code, field, rejection.message, retry)
