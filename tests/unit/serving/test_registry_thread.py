"""Changes of the registry beside an event loop: one at a time, whoever leaves; and not without end."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.tasks import registry_thread
from fedstill.cloud_server.serving.tasks.registry_thread import RegistryThread


def test_one_at_a_time_in_order_whoever_leaves() -> None:
    goes_on, begun, done = threading.Event(), threading.Event(), list[int]()

    def change(number: int) -> int:
        begun.set()
        assert goes_on.wait(20)
        done.append(number)
        return number

    async def play() -> list[object]:
        registry = RegistryThread()
        calls = [asyncio.ensure_future(registry.call(change, number)) for number in range(5)]
        await asyncio.to_thread(begun.wait, 20)
        calls[0].cancel()  # it has begun, so it is done
        calls[2].cancel()  # it waits, so it is not
        await asyncio.sleep(0.05)
        assert not done
        goes_on.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(play())
    assert done == [0, 1, 3, 4]
    assert [one for one in outcomes if isinstance(one, int)] == [1, 3, 4]


def test_what_went_wrong_belongs_to_the_one_who_asked() -> None:
    def fail() -> None:
        raise KeyError("cats")

    def stop() -> None:
        next(iter(()))

    async def play() -> int:
        registry = RegistryThread()
        with pytest.raises(KeyError, match="cats"):
            await registry.call(fail)
        with pytest.raises(RuntimeError, match="StopIteration"):  # which no future takes
            await asyncio.wait_for(registry.call(stop), 20)
        return await registry.call(lambda: 7)

    assert asyncio.run(play()) == 7


def test_not_everybody_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_thread, "MOST_WAITING", 3)
    goes_on = threading.Event()

    async def play() -> None:
        registry = RegistryThread()
        calls = [asyncio.ensure_future(registry.call(goes_on.wait, 20)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="3 calls wait for the task registry: ask again") as caught:
            await registry.call(goes_on.wait, 20)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.retry_milliseconds
        goes_on.set()
        await asyncio.gather(*calls)
        assert await registry.call(lambda: 7) == 7, "there is room again"

    asyncio.run(play())


def test_a_system_without_a_further_thread_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def play() -> int:
        registry = RegistryThread()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                await registry.call(lambda: 7)
        return await asyncio.wait_for(registry.call(lambda: 7), 10)

    assert asyncio.run(play()) == 7
