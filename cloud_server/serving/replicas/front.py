"""The front of a fleet of replicas: protocol, TLS, tokens and rate limits stay here, every answer comes from a replica.
No Ray.

A call is passed on as its bytes, a query when there is room for it (``admission.py``). An answer that got lost with its
replica is asked for once more, from another one, if asking twice does no harm; else the client is told to. So every
request gets one answer or a refusal that names its reason.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.call import current
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.open_inference import CALLS, CallForm, bound
from fedstill.cloud_server.serving.endpoints.serving_calls import OWN_CALLS
from fedstill.cloud_server.serving.endpoints.serving_service import Service
from fedstill.cloud_server.serving.endpoints.task_queries import take
from fedstill.cloud_server.serving.replicas.admission import Admission, Ending
from fedstill.cloud_server.serving.replicas.passed_call import PassedCall, asked_query, read_reply
from fedstill.cloud_server.serving.scheduling.price import Offer
from fedstill.protos import open_inference_pb2 as pb

SHORTEST_RETRY, LONGEST_RETRY = 0.1, 5.0
"""Seconds after which a client may ask again for which there was no room; between these, the time of its query."""
RETRY_MS = 1000
"""After which a client may ask again that no replica has answered."""
SLOWEST_SECONDS = 60.0
"""For a call without a deadline of its own: of a task's usual latency."""
UNKNOWN = Offer(1.0, 1e3 * SLOWEST_SECONDS, ())
"""Of a task of which no replica has told."""
GRACE_SECONDS = 10.0
"""Beyond the deadline: a replica says itself that it is too late, so this ends only calls whose replica hangs."""


NOBODY_SECONDS = 5.0
"""Without any replica, after which the calls that wait for one are refused."""
LOOK_SECONDS = 1.0


class ReplicaLost(Exception):
    """The replica ended before it answered."""


class ReplicaFailed(Exception):
    """The replica could not answer; its log says why."""


class Replicas(ABC):
    """Those behind a front. Implemented by ``RayReplicas``, and by replicas inside a test."""

    running: int = 0
    """How many can be asked."""

    @abstractmethod
    async def send(self, call: PassedCall, content: bytes) -> dict[str, Any]:
        """A replica's plain answer. Raises ReplicaLost, ReplicaFailed."""

    def offer(self, task: str) -> Offer | None:
        """What a replica has published of a task, if any has."""
        return None

    @abstractmethod
    def refresh(self) -> bool:
        """Count them again; returns whether their number changed. May block."""


class FrontService(Service):
    """Answers with replicas; safe to use from one event loop. The methods of a ``Queue`` are for any thread."""

    def __init__(self, replicas: Replicas, access: AccessPolicy) -> None:
        self._replicas = replicas
        self._draining = self._retiring = self._stopped = False
        self.told: Callable[[str, str], None] = lambda method, code: None
        """Of every call, and the code of its answer."""
        self.admission = Admission(lambda: replicas.running)
        self._changed = threading.Condition()
        self._open = 0
        self._ending: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        local = {"ServerLive": self._live, "ServerReady": self._is_ready}
        calls = {
            name: local.get(name) or partial(self._pass, False, name, form) for name, form in CALLS.items()
        }
        own = {name: partial(self._pass, True, name, form) for name, form in OWN_CALLS.items()}
        super().__init__(bound(CALLS, calls), bound(OWN_CALLS, own), access)

    @property
    def ready(self) -> bool:
        return not (self._retiring or self._draining) and self._replicas.running > 0

    def retire(self) -> None:
        self._retiring = True

    def start(self) -> None:
        """Nothing waits here."""

    def queued(self) -> int:
        """Calls without an answer."""
        return self._open

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self._draining = True

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until every call has its answer, for at most so long; returns whether all have."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)

    def stop(self) -> None:
        """Refuse the calls that still wait."""
        self._draining = self._stopped = True
        if self._loop is not None and self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
            self._loop.call_soon_threadsafe(self.admission.close)
            self.wait_until_idle(1.0)

    async def _live(self, request: Any, _: float | None) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _is_ready(self, request: Any, _: float | None) -> Message:
        return pb.ServerReadyResponse(ready=self.ready)

    async def _pass(
        self, own: bool, method: str, form: CallForm, request: Message, remaining: float | None
    ) -> Message:
        """What a replica answers. Raises RequestError."""
        if self._draining:
            raise _unavailable("the server is going down")
        if not self._replicas.running:
            raise _unavailable("no replica runs: try again later")
        query = asked_query(method, request, remaining)
        caller = current()
        if query is not None:
            take(self.access.limits, caller.node, query.images)
        call = PassedCall(
            own, method, remaining,
            request_id=caller.request_id, given=caller.given, node=caller.node,
            trace=tuple(caller.trace.items()), query=query,
        )  # fmt: skip
        content = request.SerializeToString()
        with self._changed:
            self._open += 1
        try:
            plain = await self._answer(call, content, attempts=1 if form.operators else 2)
            self.told(method, plain.get("code", "OK"))
        except RequestError as error:
            self.told(method, error.code.name)
            raise
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()
        return read_reply(plain, form.reply)

    async def _answer(self, call: PassedCall, content: bytes, attempts: int) -> dict[str, Any]:
        """A replica's. A query is passed on once there is room for it. Raises RequestError."""
        if call.query is None:
            return await self._ask(call, content, SLOWEST_SECONDS + GRACE_SECONDS, attempts)
        offer = self._replicas.offer(call.query.task) or UNKNOWN
        seconds = call.query.time(offer)
        query = call.query
        passage = await self.admission.enter(query.worth(offer), query.images, seconds, query.task)
        if passage is None:
            if self._stopped:
                raise _unavailable("the server is going down")
            raise _overload(seconds)
        ending: Ending = "other"
        there = None
        try:
            left = seconds - (passage.sent - passage.arrived) + GRACE_SECONDS
            plain = await self._ask(replace(call, elapsed=passage.elapsed), content, left, attempts)
            ending, there = _ENDINGS.get(plain.get("code", ""), "other"), plain.get("seconds")
            return plain
        finally:
            self.admission.leave(passage, ending, there)

    async def _ask(self, call: PassedCall, content: bytes, seconds: float, attempts: int) -> dict[str, Any]:
        began, again = time.monotonic(), False
        while True:
            attempts -= 1
            elapsed = time.monotonic() - began
            try:
                plain = await self._unless_ending(
                    self._replicas.send(replace(call, elapsed=call.elapsed + elapsed), content),
                    seconds - elapsed,
                )
                if again:
                    plain.pop("seconds", None)  # the time at the first replica is no part of the way
                return plain
            except ReplicaLost:
                if not attempts:
                    text = "the replica ended before it answered: ask again"
                    raise _unavailable(text) from None
                again = True
            except ReplicaFailed:
                text = "the replica failed; see its log"
                raise RequestError(grpc.StatusCode.INTERNAL, "", text) from None

    async def _unless_ending(self, sending: Any, seconds: float) -> dict[str, Any]:
        """The answer. Raises RequestError if it takes too long, and when the server stops."""
        if self._ending is None:
            self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        answer: asyncio.Future[dict[str, Any]] = asyncio.ensure_future(sending)
        ending = asyncio.ensure_future(self._ending.wait())
        now = somebody = time.monotonic()
        end = now + seconds
        try:
            while True:
                await asyncio.wait(
                    (answer, ending),
                    timeout=min(LOOK_SECONDS, max(0.0, end - now)),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                now = time.monotonic()
                if answer.done():
                    return answer.result()
                if ending.done():
                    raise _unavailable("the server is going down")
                if now >= end:
                    text = f"no replica answered within {math.ceil(seconds)} s"
                    raise RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "", text)
                if self._replicas.running:
                    somebody = now
                elif now - somebody >= NOBODY_SECONDS:
                    raise _unavailable("no replica runs: try again later")
        finally:
            answer.cancel()
            ending.cancel()


_ENDINGS: dict[str, Ending] = {
    "": "answered",
    grpc.StatusCode.RESOURCE_EXHAUSTED.name: "no_time",
    grpc.StatusCode.DEADLINE_EXCEEDED.name: "no_time",
}
"""By the code of a replica's refusal."""


def _overload(seconds: float) -> RequestError:
    """Of a query that would be late behind those that are on their way. seconds: until its deadline."""
    retry = math.ceil(1e3 * min(max(seconds, SHORTEST_RETRY), LONGEST_RETRY))
    text = "overload: more is asked than the replicas answer in time"
    return RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "", text, retry)


def _unavailable(text: str) -> RequestError:
    return RequestError(grpc.StatusCode.UNAVAILABLE, "", text, RETRY_MS)
