"""The end of a server: a signal retires it, another one hurries it, and it is stopped in any case."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from fedstill.cloud_server.grpc.until_signalled import run_until_signalled


class Noted:
    """A server that notes what is done to it; once started it sends itself a signal."""

    def __init__(self, lame_duck_seconds: float, signals: int = 1) -> None:
        self.seconds, self.signals, self.done = lame_duck_seconds, signals, list[str]()

    async def start(self) -> str:
        self.done.append("start")
        if self.signals:
            os.kill(os.getpid(), signal.SIGTERM)
        return "here"

    async def retire(self) -> None:
        self.done.append("retire")
        if self.signals > 1:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(self.seconds)
        self.done.append("retired")

    async def stop(self) -> None:
        self.done.append("stop")


def test_a_signal_retires_it_then_it_stops() -> None:
    server = Noted(lame_duck_seconds=0.05)
    run_until_signalled(server, server.done.append, retire=server.retire)
    assert server.done == ["start", "here", "retire", "retired", "stop"]


def test_another_signal_ends_the_retirement() -> None:
    server = Noted(lame_duck_seconds=3600, signals=2)
    run_until_signalled(server, server.done.append, retire=server.retire)
    assert server.done == ["start", "here", "retire", "stop"]


def test_what_goes_wrong_meanwhile_stops_it_at_once() -> None:
    async def fail() -> None:
        raise ValueError("no models")

    server = Noted(lame_duck_seconds=3600, signals=0)
    with pytest.raises(ValueError, match="no models"):
        run_until_signalled(server, server.done.append, fail, server.retire)
    assert server.done == ["start", "here", "stop"]


def test_what_goes_wrong_in_the_retirement_is_raised_after_the_stop() -> None:
    async def fail() -> None:
        raise ValueError("health is gone")

    server = Noted(lame_duck_seconds=0)
    with pytest.raises(ValueError, match="health is gone"):
        run_until_signalled(server, server.done.append, retire=fail)
    assert server.done == ["start", "here", "stop"]
