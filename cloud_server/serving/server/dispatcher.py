"""The core of the live server: owns the policy and the engine's thread, and ensures that every request gets one answer.

A request is one or more images of a task; each is a query of the policy, and they are answered together. Requests
arrive from any thread. The engine's thread asks the policy whenever it is idle, so no query is bound to a batch earlier
than necessary. Images are prepared for the engine in other threads, and only those that the policy has accepted; a
request waits in the policy's queue once all its images are ready, so the engine waits for no image.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fedstill.cloud_server.serving.callers.call import Call
from fedstill.cloud_server.serving.engine.predictions import ImageError, Prediction
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Batch, Query, Rejection, RejectionReason
from fedstill.cloud_server.serving.server.engine_runs import SHORTEST_SECONDS, EngineRuns, Infer
from fedstill.cloud_server.serving.server.events import Observer, RanBatch
from fedstill.cloud_server.serving.server.requests import NOBODY, Deliver, Outcome, Prepare, Request

LOG = logging.getLogger(__name__)

IDLE_SECONDS = 0.01
"""Seconds after which a policy that holds its queries back is asked again."""
QUIET_SECONDS = 0.5
"""Seconds after which a policy without queries is asked again: it may have to notice that the load is gone."""
LEAST_UTILITY = 1e-6
"""A query that is worth nothing is still answered if there is time."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One query of a request: its row and its image."""

    request: Request
    row: int
    query: Query


class Dispatcher:
    """Call `start` once, `submit` from anywhere, `drain` and `stop` at the end.

    Args:
        policy: whose every call happens under one lock.
        infer: runs a batch; called by the engine's thread only.
        preparing: the executor that prepares images; it has threads of its own.
        observers: informed of every event.
        waiting: queries that may wait at once.
        clock: seconds, never falling.
        device: the engine's, by name, if the process has several.
        lock: shared by the dispatchers of several devices, so that observers see one event at a time.
    """

    def __init__(
        self,
        policy: Policy,
        infer: Infer,
        preparing: Executor,
        observers: Sequence[Observer] = (),
        waiting: int = 1024,
        clock: Callable[[], float] = time.monotonic,
        device: str = "",
        lock: threading.Condition | None = None,
    ) -> None:
        self._policy, self._preparing = policy, preparing
        self._engine = EngineRuns(infer, clock, device)
        self._observers, self._most, self._clock = observers, waiting, clock
        self._changed = lock or threading.Condition()
        self.device = device
        self._news = False  # something happened since the engine's thread looked last
        self._open: set[Request] = set()
        self._unready: set[Request] = set()  # some of their images are being prepared
        self._items: dict[int, _Item] = {}  # of queries that wait: for their images, or in the policy
        self._outbox: list[tuple[Deliver, Outcome]] = []
        self._swaps: list[tuple[Callable[[], Policy], Future[None]]] = []
        self._idle_work: deque[Callable[[], None]] = deque()
        self._following = 0
        self._busy_until = 0.0  # as the policy expects; 0 while no batch runs
        self._draining = self._stopping = False
        self._thread: threading.Thread | None = None
        self.versions: Mapping[str, int] = {}
        """Of the tasks that ``infer`` knows; their owner sets it before the start, and in ``make`` of a `swap`."""

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def policy(self) -> Policy:
        """The present policy; to inspect, not to call."""
        return self._policy

    @property
    def profile(self) -> Profile:
        """The present policy's."""
        return self._policy.profile

    @property
    def engines(self) -> int:
        """How many batches can run at once."""
        return 1

    @property
    def failing(self) -> bool:
        """Whether the engine has failed lately and not answered since: whoever can, should go elsewhere for a while."""
        return self._engine.failing

    def queued(self) -> int:
        """Queries that wait."""
        return len(self._items)

    def backlog(self) -> float:
        """Seconds of work: what is left of the running batch, and what waits, at the fastest schedules. Never 0 while a
        batch runs, also if it should have ended."""
        running = max(SHORTEST_SECONDS, self._busy_until - self._clock()) if self._busy_until else 0.0
        return running + self._waiting_seconds()

    def _waiting_seconds(self) -> float:
        return len(self._items) * self._policy.least_seconds()

    def submit(
        self,
        task: str,
        images: Sequence[Prepare],
        latency_seconds: float,
        utility: float,
        deliver: Deliver,
        caller: Call = NOBODY,
    ) -> Request:
        """Accept a request, or refuse it.

        Args:
            images: at least one.
            utility: of each image.
            deliver: called exactly once, from any thread, unless the request is cancelled before; must be quick.
            caller: for observers.
        """
        with self._changed:
            now = self._clock()
            deadline = now + latency_seconds
            request = Request(
                task, utility, now, deadline, deliver, len(images), caller.request_id, caller.node
            )
            self._open.add(request)
            for observer in self._observers:
                observer.offered(task, utility, len(images))
            rejection = self._admit(request, now)
            if rejection is not None:
                self._reject(request, rejection)
            else:
                request.images = [self._preparing.submit(prepare) for prepare in images]
                request.unready = len(images)
                self._unready.add(request)
            preparing = tuple(request.images)
            self._wake()  # also after a refusal: the policy may decide otherwise at the next decision
        for image in preparing:
            image.add_done_callback(partial(self._prepared, request))
        self._flush()
        return request

    def cancel(self, request: Request) -> None:
        """The client has left: forget the request, without an answer. An answered request is not affected."""
        with self._changed:
            if not request.closed:
                self._close(request)
                self._drop(request, "cancelled")

    def swap(self, make: Callable[[], Policy]) -> Future[None]:
        """Between two batches, replace the present policy by the one that ``make`` returns.

        Waiting queries move to the new policy; those of a task that it does not know are rejected. ``make`` runs in
        the engine's thread, so it may also change the engine. If it raises, nothing changes, and the future holds the
        exception; after `stop` it is cancelled.
        """
        done: Future[None] = Future()
        with self._changed:
            if self._stopping:
                done.cancel()
            else:
                self._swaps.append((make, done))
                self._wake()
        return done

    def when_idle(self, work: Callable[[], None]) -> None:
        """Call ``work`` in the engine's thread when nothing has come for `QUIET_SECONDS`, again and again.

        Several works take turns. Whoever comes meanwhile waits for it, so it must be short.
        """
        self._idle_work.append(work)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread = threading.Thread(target=self._run, name="engine")
        self._thread.start()

    def drain(self) -> None:
        """Refuse new requests from now on; accepted ones are still answered."""
        with self._changed:
            self._draining = True

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until every request has its answer, for at most so long; returns whether all have."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)

    def stop(self) -> None:
        """Refuse all waiting requests and end the engine's thread after its batch."""
        with self._changed:
            self._draining = self._stopping = True
            self._reject_all(Rejection("draining", message="the server is going down"))
            for _, done in self._swaps:
                done.cancel()
            self._swaps.clear()
            self._wake()
        self._flush()
        if self._thread is not None:
            self._thread.join()

    def step(self) -> bool:
        """One turn of the engine's thread: decide, and run the batch. False if there was nothing to run."""
        with self._changed:
            self._news = False
            self._do_swaps()
            now = self._clock()
            began = time.perf_counter()
            decision = self._policy.dispatch(now)
            decided = time.perf_counter() - began
            batch = decision.batch
            for item in self._pop(decision.evicted):
                self._evict(item.request)
            for request in [one for one in self._unready if one.deadline <= now]:
                self._evict(request)
            items = self._pop(() if batch is None else batch.queries)
            ready = [
                (item, item.request.images[item.row].result()) for item in items if not item.request.closed
            ]
            queued = self._policy.queued()
            self._busy_until = 0.0 if batch is None else now + batch.predicted_seconds
        self._flush()
        if batch is None:
            return False
        seconds, results = self._engine.run(
            [image for _, image in ready], [item.request.task for item, _ in ready], batch.schedule.name
        )
        outcomes = [None] * len(ready) if results is None else results
        with self._changed:
            finished, self._busy_until = self._clock(), 0.0
            ran = tuple(item.query for item, _ in ready) if results is not None else ()
            self._policy.completed(replace(batch, queries=ran), finished, seconds)
            for (item, _), result in zip(ready, outcomes, strict=True):
                self._take(item, result, batch, len(ready), now, finished)
            if ran:
                asked = [item.request for item, _ in ready]
                tasks = Counter(one.task for one in asked)
                trunk, schedule = self._policy.profile.origin(batch.schedule.name)
                report = RanBatch(
                    time=time.time() - seconds,
                    schedule=schedule,
                    tasks=dict(tasks),
                    versions={task: self.versions.get(task, 1) for task in tasks},
                    nodes=dict(Counter(one.node for one in asked if one.node)),
                    requests=tuple(dict.fromkeys(one.request_id for one in asked if one.request_id)),
                    predicted_seconds=batch.predicted_seconds,
                    seconds=seconds,
                    waiting_seconds=tuple(now - item.query.arrival for item, _ in ready),
                    queued=queued,
                    evicted=len(decision.evicted),
                    decision_seconds=decided,
                    trunk=trunk,
                    device=self.device,
                )
                for observer in self._observers:
                    observer.ran(report)
        self._flush()
        return True

    def _run(self) -> None:
        while not self._stopping:
            try:
                ran = self.step()
            except Exception:
                # A policy or an observer of ours is wrong. No client may wait for ever because of that.
                LOG.exception("event=dispatch_failed")
                with self._changed:
                    self._reject_all(Rejection("failed", message="the server failed; see its log"))
                self._flush()
                ran = False
            if ran:
                continue
            with self._changed:
                seconds = IDLE_SECONDS if self._items else QUIET_SECONDS
                self._changed.wait_for(lambda: self._news or self._stopping, seconds)
                quiet = not (self._news or self._open or self._draining)
            if quiet and self._idle_work:
                self._idle_work.rotate(-1)
                try:
                    self._idle_work[-1]()
                except Exception:  # nobody waits for it
                    LOG.exception("event=idle_work_failed")

    def _admit(self, request: Request, now: float) -> Rejection | None:
        """Submit the queries to the policy; returns the rejection if not all of them were accepted."""
        profile = self._policy.profile
        if self._draining:
            return Rejection("draining", message="the server is going down")
        if request.task not in profile.tasks:
            return _unknown(request.task, profile.tasks)
        if request.deadline <= now:
            return Rejection("too_late", message="its deadline has passed on arrival")
        if len(self._items) + request.rows > self._most:
            return Rejection("full", self._waiting_seconds(), f"{len(self._items)} queries wait already")
        for row in range(request.rows):
            rejection = self._admit_row(request, row, now)
            if rejection is not None:
                return rejection
        return None

    def _admit_row(self, request: Request, row: int, now: float) -> Rejection | None:
        task = self._policy.profile.task_index(request.task)
        utility = max(request.utility, LEAST_UTILITY)
        query = Query(self._following, task, request.arrival, request.deadline, utility)
        self._following += 1
        try:
            rejection = self._policy.admit(query, now)
        except Exception:
            LOG.exception("event=policy_failed policy=%s", self._policy.name)
            return Rejection("failed", message="the server failed; see its log")
        if rejection is None:
            self._items[query.identifier] = _Item(request, row, query)
            request.queries.append(query.identifier)
            return None
        late = rejection.reason == "too_late"
        message = "no answer is possible before its deadline" if late else "more load than can be served"
        return replace(rejection, message=message)

    def _pop(self, queries: Sequence[Query]) -> list[_Item]:
        return [self._items.pop(query.identifier) for query in queries if query.identifier in self._items]

    def _prepared(self, request: Request, image: Future[Any]) -> None:
        """One more image is ready, or cannot be made so; after a request's last one its queries wait in the policy."""
        with self._changed:
            if request.closed:
                return
            error = image.exception()  # not raised: a traceback would hold the images of others
            if error is None:
                request.unready -= 1
                if request.unready == 0:
                    self._unready.discard(request)
                    self._enqueue(request)
            elif isinstance(error, ImageError):
                self._reject(request, Rejection("bad_image", message=str(error)))
            else:
                LOG.error("event=prepare_failed task=%s", request.task, exc_info=error)
                self._reject(request, Rejection("failed", message="the server failed; see its log"))
            self._wake()
        self._flush()

    def _enqueue(self, request: Request) -> None:
        now = self._clock()
        waiting = [self._items[number] for number in request.queries if number in self._items]
        try:
            for item in waiting:
                self._policy.enqueue(item.query, now)
        except Exception:
            LOG.exception("event=policy_failed policy=%s", self._policy.name)
            self._reject(request, Rejection("failed", message="the server failed; see its log"))

    def _evict(self, request: Request) -> None:
        if not request.closed:
            self._reject(request, Rejection("evicted", message="no answer was possible before its deadline"))

    def _take(
        self,
        item: _Item,
        result: Prediction | Rejection | None,
        batch: Batch,
        size: int,
        now: float,
        finished: float,
    ) -> None:
        request = item.request
        if request.closed:
            return
        if result is None:
            self._reject(request, Rejection("failed", message="the engine failed; see the server's log"))
            return
        if isinstance(result, Rejection):
            known = result.reason in ("unknown_task", "bad_image", "moved")
            self._reject(request, result if known else replace(result, reason="failed"))
            return
        request.took(
            item.row,
            result,
            schedule=self._policy.profile.origin(batch.schedule.name)[1],
            version=self.versions.get(request.task, 1),
            accuracy=batch.schedule.accuracy[item.query.task],
        )
        request.waiting_seconds = max(request.waiting_seconds, now - request.arrival)
        request.inference_seconds = max(request.inference_seconds, finished - now)
        request.batch_size = max(request.batch_size, size)
        if not request.complete:
            return
        late = finished > request.deadline
        self._close(request)
        self._outbox.append((request.deliver, request.response(late)))
        for observer in self._observers:
            observer.answered(request.task, request.utility, request.expected_accuracies(), late)

    def _do_swaps(self) -> None:
        swaps, self._swaps = self._swaps, []
        for make, done in swaps:
            try:
                policy = make()
            except Exception as error:  # belongs to the caller of the swap
                done.set_exception(error)
                continue
            self._move_to(policy)
            done.set_result(None)

    def _move_to(self, policy: Policy) -> None:
        now = self._clock()
        old, self._policy = self._policy, policy
        policy.adopt(old)
        waiting, self._items = self._items, {}
        for identifier in waiting:
            old.withdraw(identifier)
        moved = dict.fromkeys(item.request for item in waiting.values())
        for item in waiting.values():
            request = item.request
            if request.closed:
                continue
            known = request.task in policy.profile.tasks
            rejection = (
                self._admit_row(request, item.row, now)
                if known
                else _unknown(request.task, policy.profile.tasks)
            )
            if rejection is not None:
                self._reject(request, rejection)
        for request in moved:
            if not request.closed and not request.unready:
                self._enqueue(request)

    def _reject_all(self, rejection: Rejection) -> None:
        for request in tuple(self._open):
            self._reject(request, rejection)

    def _reject(self, request: Request, rejection: Rejection) -> None:
        self._close(request)
        self._outbox.append((request.deliver, rejection))
        self._drop(request, rejection.reason)

    def _drop(self, request: Request, reason: RejectionReason) -> None:
        for observer in self._observers:
            observer.dropped(request.task, reason, request.rows)

    def _close(self, request: Request) -> None:
        """Remove the remaining queries of a request from the queue; the caller has its one answer."""
        request.closed = True
        self._open.discard(request)
        self._unready.discard(request)
        for identifier in request.queries:
            if self._items.pop(identifier, None) is not None:
                self._withdraw(identifier)
        images, request.images = request.images, []
        for image in images:
            image.cancel()
        self._changed.notify_all()

    def _withdraw(self, identifier: int) -> None:
        try:
            self._policy.withdraw(identifier)
        except Exception:  # it would come back as an unknown query, which is harmless
            LOG.exception("event=policy_failed policy=%s", self._policy.name)

    def _wake(self) -> None:
        self._news = True
        self._changed.notify_all()

    def _flush(self) -> None:
        """Deliver outside of the lock."""
        with self._changed:
            outbox, self._outbox = self._outbox, []
        for deliver, outcome in outbox:
            try:
                deliver(outcome)
            except Exception:  # only this caller is affected; the others still get their answers
                LOG.exception("event=delivery_failed")


def _unknown(task: str, known: Sequence[str]) -> Rejection:
    return Rejection("unknown_task", message=f"{task[:64]!r} is not served (served: {', '.join(known)})")
