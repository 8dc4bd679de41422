"""The open-loop generator: it never waits for answers, counts honestly, and measures from the planned time."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from fedstill.evaluation.serving.open_loop import UNANSWERED, UNSENT, Record, Response, play

OK = Response("answered", label="cat")


def run(
    arrival: list[float], send, *, latency: float = 1.0, outstanding: int = 100, grace: float = 5.0
) -> Record:
    times = np.array(arrival)
    return asyncio.run(play(times, times + latency, send, outstanding=outstanding, grace=grace))


def test_a_server_that_answers_nothing_is_sent_everything_all_the_same() -> None:
    asked: list[int] = []
    everything = asyncio.Event()

    async def send(place: int, left: float) -> Response:
        asked.append(place)
        if len(asked) == 20:
            everything.set()
        await everything.wait()  # no query is answered before the last has been sent
        return OK

    record = run([0.001 * n for n in range(20)], send)
    assert asked == list(range(20))
    assert record.responses == (OK,) * 20


def test_what_would_exceed_the_bound_is_not_sent_and_said_so() -> None:
    release = asyncio.Event()

    async def send(place: int, left: float) -> Response:
        if place == 3:
            asyncio.get_running_loop().call_later(0.5, release.set)  # after the last one's time
        await release.wait()
        return OK

    record = run(np.linspace(0, 0.01, 6).tolist(), send, outstanding=4)
    assert record.responses == (OK,) * 4 + (UNSENT,) * 2
    assert np.isnan(record.lag[4:]).all()
    assert np.isinf(record.seconds[4:]).all()
    assert np.isfinite(record.seconds[:4]).all()


def test_a_query_that_is_never_answered_ends_with_the_grace() -> None:
    cancelled: list[int] = []

    async def send(place: int, left: float) -> Response:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(place)
            raise
        return OK

    record = run([0.0, 0.01], send, latency=0.05, grace=0.1)
    assert record.responses == (UNANSWERED,) * 2
    assert sorted(cancelled) == [0, 1]
    assert np.isinf(record.seconds).all()


def test_latency_counts_from_the_planned_time_and_lag_shows_a_slow_generator() -> None:
    async def send(place: int, left: float) -> Response:
        if place == 0:
            time.sleep(0.2)  # the generator itself is stuck, not the server
        return OK

    record = run([0.0, 0.01], send)
    assert record.lag[1] >= 0.15
    assert record.seconds[1] >= record.lag[1]


def test_the_time_left_shrinks_with_the_lag() -> None:
    seen: dict[int, float] = {}

    async def send(place: int, left: float) -> Response:
        seen[place] = left
        return OK

    record = run([0.0, 0.02], send, latency=0.5)
    for place, left in seen.items():
        assert left == pytest.approx(0.5 - record.lag[place])


def test_a_send_that_raises_is_a_defect_and_shows() -> None:
    async def send(place: int, left: float) -> Response:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run([0.0], send)


def test_a_load_without_queries_ends_at_once() -> None:
    async def send(place: int, left: float) -> Response:
        raise AssertionError

    assert run([], send).responses == ()
