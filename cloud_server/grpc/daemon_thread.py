"""Blocking work beside an event loop, in a thread that neither the loop's end nor the process's waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

Made = TypeVar("Made")


def in_daemon_thread(work: Callable[[], Made], name: str) -> asyncio.Future[Made]:
    """What ``work`` returns or raises. Unlike ``asyncio.to_thread`` it takes no thread from anybody else, and work that
    does not end, such as a database's that is gone, keeps nothing from ending."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Made] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not made.done():
            outcome()

    def run() -> None:
        try:
            outcome = partial(made.set_result, work())
        except StopIteration as error:  # no future takes it, and whoever waits would wait for ever
            wrapped = RuntimeError(f"StopIteration within {name}")
            wrapped.__cause__ = error
            outcome = partial(made.set_exception, wrapped)
        except BaseException as error:  # of whatever kind, it belongs to the one who waits
            outcome = partial(made.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return made
