"""Sends queries at their planned times, whatever the server does, and records the responses.

Open loop: a slow answer never delays the next query, so an overloaded server meets the whole load. Latency counts
from the *planned* time, so that a generator that falls behind does not make the server look faster. Its lag is part of
the record. The caller's `send` decides what travels, and over which protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.engine.environment import without_long_collections

ResponseKind = Literal["answered", "too_late", "overload", "failed"]

LEAD_SECONDS = 0.2
"""Seconds before the first query, so that it is not late for being first."""
GRACE_SECONDS = 10.0
"""Seconds after the last deadline in which late answers are awaited; later ones count as missing."""


@dataclass(frozen=True, slots=True)
class Response:
    """A server's response to one query.

    kind: answered, refused as too late or for overload, or failed otherwise (`detail` says how). label: the class that
    it named; schedule, waiting_ms, inference_ms and batch_size as it reported them. All but kind and detail are of
    answers only.
    """

    kind: ResponseKind
    label: str = ""
    schedule: str = ""
    waiting_ms: float = float("nan")
    inference_ms: float = float("nan")
    batch_size: int = 0
    detail: str = ""


UNSENT = Response("failed", detail="not sent: too many queries outstanding")
UNANSWERED = Response("failed", detail="no answer")


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of a load; all arrays in its order.

    responses: one per query. seconds: float64, from the planned time to the response, infinite if there was none. lag:
    float64, from the planned time to the sending, NaN for queries that were not sent.
    """

    responses: tuple[Response, ...]
    seconds: npt.NDArray[np.float64]
    lag: npt.NDArray[np.float64]


Send = Callable[[int, float], Awaitable[Response]]
"""Called with a query's index in the load and the seconds left until its deadline; must not raise."""


async def play(
    arrival: npt.NDArray[np.float64],
    deadline: npt.NDArray[np.float64],
    send: Send,
    *,
    outstanding: int,
    grace: float = GRACE_SECONDS,
) -> Record:
    """Send every query at its time and wait for the responses.

    arrival, deadline: seconds from the start of the load, sorted by arrival. outstanding: at most so many queries
    wait for an answer at once; queries beyond that are not sent, and recorded as UNSENT. grace: seconds after
    the last deadline for which late answers are awaited.
    """
    with without_long_collections():  # 0.2 s each, in which nothing is sent
        return await _play(arrival, deadline, send, outstanding, grace)


async def _play(
    arrival: npt.NDArray[np.float64],
    deadline: npt.NDArray[np.float64],
    send: Send,
    outstanding: int,
    grace: float,
) -> Record:
    count = len(arrival)
    responses = [UNANSWERED] * count
    finished, sent = np.full(count, np.inf), np.full(count, np.nan)
    waiting: set[asyncio.Task[None]] = set()
    start = time.perf_counter() + LEAD_SECONDS

    async def one(place: int) -> None:
        sent[place] = time.perf_counter() - start
        response = await send(place, float(deadline[place] - sent[place]))
        finished[place] = time.perf_counter() - start
        responses[place] = response

    for place, due in enumerate(arrival.tolist()):
        # At least one turn for the answers, also when behind.
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        if len(waiting) >= outstanding:
            responses[place] = UNSENT
            continue
        task = asyncio.create_task(one(place))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    end = start + float(deadline.max(initial=0.0)) + grace
    if waiting:
        done, left = await asyncio.wait(waiting.copy(), timeout=max(0.0, end - time.perf_counter()))
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for task in done:
            task.result()  # a `send` that raised is a defect, not a measurement
    return Record(tuple(responses), finished - arrival, sent - arrival)
