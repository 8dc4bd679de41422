"""Calls that read or change the task registry, beside an event loop that answers queries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import grpc

from fedstill.cloud_server.grpc.daemon_thread import in_daemon_thread
from fedstill.cloud_server.grpc.request_error import RequestError

Made = TypeVar("Made")
Given = ParamSpec("Given")

MOST_WAITING = 256
RETRY_MS = 1000
"""After which a database that did not answer is asked again."""


class RegistryThread:
    """One call at a time, in a thread of its own.

    A registry that does not answer, because somebody has locked it or its disk is gone, holds up whoever calls it, but
    no query, and not the end of the server.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def call(self, work: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs) -> Made:
        """What ``work`` returns or raises. Once begun it is done, even if its caller leaves meanwhile.

        Raises:
            RequestError: too many wait.
        """
        if self._waiting >= MOST_WAITING:
            text = f"{self._waiting} calls wait for the task registry: ask again"
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "", text, RETRY_MS)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            made = in_daemon_thread(partial(work, *args, **kwargs), "registry")
        except BaseException:  # the system has no further thread
            self._turn.release()
            raise
        made.add_done_callback(self._end_turn)
        return await asyncio.shield(made)

    def _end_turn(self, made: asyncio.Future[Made]) -> None:
        self._turn.release()
        if not made.cancelled():
            made.exception()  # it has been seen, though the caller may have left
