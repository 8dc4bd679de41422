"""A dispatcher whose trunks are not all in memory: a query for one that is not waits until it is loaded, or is refused.

The policy plans for all trunks, and sees queries of loaded ones only: the others wait here. Loading happens in a thread
of its own, one trunk at a time (``residency.py`` says which), while the engine's thread answers for the others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from fedstill.cloud_server.serving.callers.call import Call
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.engine_runs import Infer
from fedstill.cloud_server.serving.server.events import Observer
from fedstill.cloud_server.serving.server.requests import NOBODY, Deliver, Outcome, Prepare, Request, Response
from fedstill.cloud_server.serving.server.residency import Footprint, NotYet, Residency, Step, Ticket
from fedstill.cloud_server.serving.server.served_tasks import TrunkState

LOG = logging.getLogger(__name__)

LONGEST_WAIT = 1.0
"""Seconds between two looks, should a clock or an estimate be wrong."""


class Loadable(Protocol):
    """What can be loaded. Implemented by ``LoadableEngine``."""

    def load(self, progress: Callable[[str], None]) -> Footprint:
        """Into memory; ``progress`` may raise to end it early."""

    def unload(self) -> None:
        """Out of memory."""


class LoadObserver(Protocol):
    """Is called in the loading thread, after each. Implemented by ``TrunkMetrics``."""

    def loaded(self, trunk: str, footprint: Footprint) -> None:
        """A trunk is in memory."""

    def load_failed(self, trunk: str) -> None:
        """A trunk could not be loaded."""

    def unloaded(self, trunk: str) -> None:
        """A trunk is out of memory."""


class Ending(Exception):
    """Ends a loading early: the server is going down."""


@dataclass(eq=False, slots=True)
class _Asked(Request):
    """A request as its submitter has it. inner: the same in the queue, once it is let in. held_seconds: until then."""

    prepare: Sequence[Prepare] = ()
    caller: Call = field(default_factory=Call)
    inner: Request | None = None
    held_seconds: float = 0.0


class LoadingDispatcher(Dispatcher):
    """As ``Dispatcher``; its deadlines are those of whoever asks, loading included.

    Args:
        trunks: by the names that the policy's profile knows them by.
    """

    def __init__(
        self,
        policy: Policy,
        infer: Infer,
        preparing: Executor,
        observers: Sequence[Observer],
        waiting: int,
        residency: Residency,
        trunks: Mapping[str, Loadable],
        **more: Any,
    ) -> None:
        super().__init__(policy, infer, preparing, observers, waiting, **more)
        self._residency, self._trunks = residency, trunks
        self.load_observers: Sequence[LoadObserver] = ()
        """Informed of every loading; to be set before the start."""
        # Never held while calling a dispatcher's method or a client: its own lock comes before this one.
        self._room = threading.Condition()
        self._held: set[_Asked] = set()
        self._going_down = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._keeper = threading.Thread(target=self._keep, name="residency")

    def state(self, trunk: str) -> TrunkState:
        """Of a trunk, for whoever looks."""
        with self._room:
            known = self._residency
            return TrunkState(known.is_loaded(trunk), known.footprint(trunk).bytes, known.failed(trunk))

    def queued(self) -> int:
        return super().queued() + sum(one.rows for one in tuple(self._held))

    def submit(
        self,
        task: str,
        images: Sequence[Prepare],
        latency_seconds: float,
        utility: float,
        deliver: Deliver,
        caller: Call = NOBODY,
    ) -> Request:
        trunk = self._trunk_of(task)
        if trunk is None or self.draining:  # refused there
            return super().submit(task, images, latency_seconds, utility, deliver, caller)
        now = self._clock()
        asked = _Asked(
            task, utility, now, now + latency_seconds, deliver, len(images), caller.request_id, caller.node,
            prepare=images, caller=caller,
        )  # fmt: skip
        with self._room:
            verdict = self._residency.arrive(trunk, asked, now, asked.deadline)
            if verdict == "wait" and (self._going_down or self.queued() + len(images) > self._most):
                self._residency.ended(asked, now)
                verdict = NotYet(self._residency.ready_in(trunk, now))
            elif verdict == "wait":
                self._held.add(asked)
            self._room.notify_all()
        if verdict == "in":
            self._let_in(asked)
        elif isinstance(verdict, NotYet):
            self._turn_away(asked, _not_yet(trunk or task, verdict))
        return asked

    def cancel(self, request: Request) -> None:
        if not isinstance(request, _Asked):
            super().cancel(request)
            return
        with self._room:
            waited = request in self._held
            self._held.discard(request)
            if request.closed:
                return
            request.closed = True
            inner = request.inner
            self._residency.ended(request, self._clock())
            self._room.notify_all()
        if waited:
            self._note(request, "cancelled")
        elif inner is not None:
            super().cancel(inner)

    def start(self) -> None:
        super().start()
        self._keeper.start()

    def drain(self) -> None:
        """As ``Dispatcher``; whoever waits for a trunk is refused, because loading may take longer than the end."""
        super().drain()
        with self._room:
            self._going_down = True
            self._residency.give_up()
            held = self._no_longer_held(list(self._held))
            self._room.notify_all()
        for asked in held:
            self._turn_away(asked, Rejection("draining", message="the server is going down"))

    def stop(self) -> None:
        self.drain()
        if self._keeper.is_alive():
            self._keeper.join()
        self._loader.shutdown()
        super().stop()

    def _trunk_of(self, task: str) -> str | None:
        profile = self.policy.profile
        return profile.trunk_of_task[profile.tasks.index(task)] if task in profile.tasks else None

    def _let_in(self, asked: _Asked) -> None:
        """Into the queue, with the time that is left."""
        asked.held_seconds = self._clock() - asked.arrival
        left = asked.deadline - self._clock()
        images, asked.prepare = asked.prepare, ()
        inner = super().submit(
            asked.task, images, left, asked.utility, partial(self._settle, asked), asked.caller
        )
        with self._room:
            asked.inner = inner
            gone = asked.closed
        if gone:  # cancelled meanwhile; an answered one is not affected
            super().cancel(inner)

    def _settle(self, asked: _Asked, outcome: Outcome) -> None:
        with self._room:
            if asked.closed:
                return
            asked.closed = True
            self._residency.ended(asked, self._clock())
            self._room.notify_all()
        if isinstance(outcome, Response):
            outcome = replace(outcome, waiting_seconds=outcome.waiting_seconds + asked.held_seconds)
        asked.deliver(outcome)

    def _turn_away(self, asked: _Asked, rejection: Rejection) -> None:
        """Refuse a request that never came into the queue."""
        with self._room:
            if asked.closed:
                return
            asked.closed = True
        self._note(asked, rejection.reason)
        try:
            asked.deliver(rejection)
        except Exception:  # only this caller is affected
            LOG.exception("event=delivery_failed")

    def _note(self, asked: _Asked, reason: Any) -> None:
        asked.prepare = ()
        with self._changed:  # observers are called under this lock
            for observer in self._observers:
                observer.offered(asked.task, asked.utility, asked.rows)
                observer.dropped(asked.task, reason, asked.rows)

    def _no_longer_held(self, tickets: Sequence[Ticket]) -> list[_Asked]:
        """Those that still wait. With the lock."""
        found = [one for one in tickets if isinstance(one, _Asked)]
        self._held.difference_update(found)
        return found

    def _keep(self) -> None:
        """The thread that decides what to load, and refuses whoever has waited until the deadline."""
        while True:
            with self._room:
                if self._going_down:
                    return
                now = self._clock()
                expired = self._no_longer_held(self._residency.expired(now))
                step = self._residency.next_step(now)
                if step is not None:
                    self._loader.submit(self._do, step)
                elif not expired:
                    self._room.wait(min(LONGEST_WAIT, max(0.0, self._residency.wake_at(now) - now)))
            for asked in expired:
                trunk = self._trunk_of(asked.task) or asked.task
                self._turn_away(
                    asked, Rejection("evicted", message=f"{trunk} was not loaded before its deadline")
                )

    def _do(self, step: Step) -> None:
        if step.kind == "load":
            self._load(step.trunk)
            return
        try:
            self._trunks[step.trunk].unload()
        except Exception:  # it is out of use all the same
            LOG.exception("event=trunk_unload_failed trunk=%s", step.trunk)
        with self._room:
            self._residency.has_unloaded(step.trunk, self._clock())
            self._room.notify_all()
        LOG.info("event=trunk_unloaded trunk=%s", step.trunk)
        for observer in self.load_observers:
            observer.unloaded(step.trunk)

    def _load(self, trunk: str) -> None:
        LOG.info("event=trunk_loading trunk=%s", trunk)
        try:
            footprint = self._trunks[trunk].load(self._check_end)
        except Exception as error:  # whatever it is, others are served on
            with self._room:
                waited = self._no_longer_held(self._residency.has_failed(trunk, self._clock()))
                self._room.notify_all()
            if not isinstance(error, Ending):
                LOG.error("event=trunk_load_failed trunk=%s", trunk, exc_info=error)
                for observer in self.load_observers:
                    observer.load_failed(trunk)
            for asked in waited:
                text = f"{trunk} could not be loaded; see the server's log"
                self._turn_away(asked, Rejection("failed", message=text))
            return
        with self._room:
            waited = self._no_longer_held(self._residency.has_loaded(trunk, self._clock(), footprint))
            self._room.notify_all()
        LOG.info(
            "event=trunk_loaded trunk=%s bytes=%d seconds=%.2f waited=%d",
            trunk, footprint.bytes, footprint.seconds, len(waited),
        )  # fmt: skip
        for observer in self.load_observers:
            observer.loaded(trunk, footprint)
        for asked in waited:
            self._let_in(asked)

    def _check_end(self, _: str) -> None:
        if self._going_down:
            raise Ending


def _not_yet(trunk: str, verdict: NotYet) -> Rejection:
    seconds = max(0.1, verdict.seconds)
    about = f"{seconds:.0f}" if seconds >= 1 else f"{seconds:.1f}"
    if verdict.failed:
        text = f"{trunk} could not be loaded; the server tries again in about {about} s"
    else:
        text = f"{trunk} is being loaded, ready in about {about} s"
    return Rejection("loading", seconds, text)
