"""Clients that wait for their answers: what they measure is the rate of the server."""

from __future__ import annotations

import asyncio

import pytest

from fedstill.common.errors import DataError
from fedstill.evaluation.serving.closed_loop import CLIENTS, closed_loop_rate
from fedstill.evaluation.serving.open_loop import Response
from fedstill.evaluation.serving.task_images import TaskImages

PICTURES = tuple(TaskImages(name, (b"1", b"2", b"3"), ("a", "b", "a")) for name in ("one", "two"))


class Fake:
    """Serves one query at a time."""

    def __init__(self, seconds: float, kind: str = "answered") -> None:
        self._seconds, self._kind = seconds, kind
        self._engine = asyncio.Semaphore(1)
        self.asked: list[tuple[str, bytes]] = []
        self.waiting = self.most = 0

    async def describe(self) -> None:
        raise NotImplementedError

    async def query(self, task: str, picture: bytes, latency_ms: float, utility: float) -> Response:
        self.asked.append((task, picture))
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        async with self._engine:
            await asyncio.sleep(self._seconds)
        self.waiting -= 1
        return Response(self._kind, detail="why")


def test_the_rate_is_the_server_s() -> None:
    async def ask() -> tuple[float, Fake]:
        fake = Fake(0.002)
        return await closed_loop_rate(fake, PICTURES, seconds=0.5, warm_up=0.1), fake

    rate, fake = asyncio.run(ask())
    assert 100 < rate <= 500  # a busy machine sleeps longer, never shorter
    assert fake.most == CLIENTS
    assert {task for task, _ in fake.asked} == {"one", "two"}
    assert {picture for _, picture in fake.asked} == {b"1", b"2", b"3"}


def test_a_refusal_is_not_counted_as_an_answer() -> None:
    async def ask() -> float:
        return await closed_loop_rate(Fake(0.001, "overload"), PICTURES, seconds=0.1, warm_up=0.0)

    with pytest.raises(DataError, match="at its own pace: overload why"):
        asyncio.run(ask())
