"""One request to one node over a Flower grid: an answer in time, or a reason in one line. It never hangs.

Replies are matched by message id, because an error made by the SuperLink carries the SuperLink's node id.
Several personalisation jobs ask at the same time from their own threads; a lock keeps the grid to one at a time.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedstill.cloud_server.distillation.rounds import DeviceFailure
from fedstill.protos.messages import MissingDependency, WireError
from fedstill.protos.records import decode, encode, payload_bytes

Reply = TypeVar("Reply")

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 1.0
"""A simulated device answers at once; a real one takes seconds, and every look costs both sides a request."""
LOST = (3, 4, 5, 8)
"""Flower's codes for a message, a reply or a node that is not there any more, and for an app that died."""
GRACE_SECONDS = 30.0
"""A message lives this much longer than we wait for it, so that a late reply does not become an error."""


class DeviceLost(DeviceFailure):
    """No answer because the device, or the link to it, went away; asking again may help."""


@dataclass(frozen=True)
class WireCost:
    """The bytes that one answered request cost on the wire: ``up`` its reply, ``down`` the request."""

    up_bytes: int
    down_bytes: int


class DeviceLacks(DeviceFailure):
    """A device needs ``item`` (see ``messages.MissingDependency``) first; ``spent`` is the cost of this reply."""

    def __init__(self, lacking: MissingDependency, spent: WireCost) -> None:
        super().__init__(f"says that it lacks {lacking.item} {lacking.version[:12]}")
        self.item, self.spent = lacking.item, spent


@dataclass
class Exchange:
    """Sends requests to nodes; ``timeout`` in seconds per request."""

    grid: Grid
    timeout: float
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self, node: int, action: str, request: object, expect: type[Reply], timeout: float | None = None
    ) -> tuple[Reply, WireCost]:
        """Send ``request`` to ``node`` and decode its reply.

        Raises:
            DeviceLost: the device died or did not answer.
            DeviceLacks: it lacks something that the request referred to.
            DeviceFailure: it raised, or sent an invalid reply.
        """
        content = encode(request)
        reply = self._exchange(node, action, content, self.timeout if timeout is None else timeout)
        cost = WireCost(payload_bytes(reply), payload_bytes(content))
        try:
            return decode(expect, reply, request), cost
        except WireError as error:
            if lacking := _missing_dependency(reply):
                raise DeviceLacks(lacking, cost) from None
            raise DeviceFailure(f"sent an unusable {expect.__name__}: {error}") from error

    def online(self) -> set[int]:
        """The nodes that Flower takes for online."""
        with self.lock:
            return set(self.grid.get_node_ids())

    def _exchange(self, node: int, action: str, content: RecordDict, timeout: float) -> RecordDict:
        with self.lock:
            message = Message(content, node, action, ttl=timeout + GRACE_SECONDS)
            message_id = next(iter(self.grid.push_messages([message])), None)
        if not message_id:
            raise DeviceLost("the message could not be delivered")
        end, pause = time.monotonic() + timeout, POLL_SECONDS
        while True:
            with self.lock:
                replies = list(self.grid.pull_messages([message_id]))
            if replies:
                break
            if time.monotonic() >= end:
                raise DeviceLost(f"no reply within {timeout:.0f} s")
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
        if replies[0].has_error():
            error = replies[0].error
            raise (DeviceLost if error.code in LOST else DeviceFailure)(_reason(error.reason))
        return replies[0].content


def _missing_dependency(content: RecordDict) -> MissingDependency | None:
    """The item that the device lacks, if its reply says so."""
    try:
        return decode(MissingDependency, content)
    except WireError:
        return None


def _reason(text: str | None) -> str:
    """The last meaningful line of a device's error (a simulated one is a coloured Ray traceback)."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text or "")
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    wrapped = re.fullmatch(r"<class '.*?'>:\s*<['\"](.*)['\"]>", lines[-1]) if lines else None
    if wrapped:
        return wrapped.group(1)
    return re.sub(r"^[\w.]+(Error|Exception|Failed): ", "", lines[-1]) if lines else "failed without a reason"
