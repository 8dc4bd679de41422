"""One request to one node over a Flower grid: an answer in time, or a reason in one line. It never hangs.

Several personalisation jobs ask at the same time from their own threads; a lock keeps the grid to one at a time, but
not looks for replies. Flower's look ends when the whole reply is there, however slow the device's link is: so each
message has looks of its own, in threads of their own, and nobody else waits for that link.

A connection that breaks at the wrong moment loses a request or its reply for ever: Flower's SuperNode says so in its
own log and goes on, and nobody tells us. But it takes one message at a time, the oldest first. So whoever has waited
for a while sends a light request behind the first one: once that is answered and the first one is not, it is lost.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedstill.cloud_server.distillation.rounds import DeviceFailure
from fedstill.protos.messages import HelloRequest, MissingDependency, WireError
from fedstill.protos.records import decode, encode, payload_bytes

LOG = logging.getLogger(__name__)

Reply = TypeVar("Reply")

PROBE_SECONDS = 20.0
"""Then a device is asked for a sign of life, and again after twice as long: long work gets few of them."""
POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 1.0
"""A simulated device answers at once; a real one takes seconds, and every look costs both sides a request."""
ARRIVAL_SECONDS = 30.0
"""So long after a reply has come in whole, Flower's look has surely ended: it looks for missing parts every 12 s."""
MOST_LEFT = 4
"""Looks of one node that nobody waits for any more. They end when no part of the reply has come for three minutes, or
after two hours, and a node that lets them pile up is asked nothing until then."""
MOST_LOOKS = 4096
"""Threads, made when they are needed: nobody may wait for another one's look."""
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
    """Sends requests to nodes.

    Attributes:
        timeout: seconds per request.
        probe: a light request, sent behind one that stays unanswered; None where nodes do not take messages in order.
    """

    grid: Grid
    timeout: float
    probe: HelloRequest | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    _looks: dict[str, Future[Message | None]] = field(default_factory=dict)
    _left: list[int] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(MOST_LOOKS, "reply"))

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

    def is_open(self) -> bool:
        """Whether Flower answers at all: its server may have died, and this process be about to follow it."""
        try:
            self.online()
        except Exception:  # whatever the grid's transport raises
            return False
        return True

    def _exchange(self, node: int, action: str, content: RecordDict, timeout: float) -> RecordDict:
        if self._left.count(node) >= MOST_LEFT:
            raise DeviceLost(f"{MOST_LEFT} of its replies have been coming in for long")
        request = self._send(node, action, content, timeout)
        if not request:
            raise DeviceLost("the message could not be delivered")
        signs = _Signs(self, node)
        try:
            reply = self._awaited(request, signs, timeout)
        finally:
            self._forget(node, [request, *signs.sent])
        if reply.has_error():
            raise (DeviceLost if reply.error.code in LOST else DeviceFailure)(_reason(reply.error.reason))
        return reply.content

    def _awaited(self, request: str, signs: _Signs, timeout: float) -> Message:
        end, pause = time.monotonic() + timeout, POLL_SECONDS
        reply = self._reply(request)
        while reply is None:
            left = max(0.0, end - time.monotonic())
            look = self._looks.get(request)
            coming_in = look is not None and look.running() and time.monotonic() < end + timeout
            if not left and not coming_in:
                raise DeviceLost(f"no reply within {timeout:.0f} s")
            if signs.of_life(left):
                reply = self._reply(request, ARRIVAL_SECONDS)  # it came in between the looks, or still does
                if reply is None and request not in self._looks:
                    reply = self._reply(request, ARRIVAL_SECONDS)  # that look may have begun before it came
                if reply is None:
                    raise DeviceLost("the request or its reply was lost on the way")
                break
            time.sleep(min(pause, left))
            reply = self._reply(request)
            pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
        return reply

    def _send(self, node: int, action: str, content: RecordDict, timeout: float) -> str:
        """The message's id; empty if it was not accepted."""
        with self.lock:
            message = Message(content, node, action, ttl=timeout + GRACE_SECONDS)
            return next(iter(self.grid.push_messages([message])), "")

    def _reply(self, message_id: str, patience: float | None = None) -> Message | None:
        """Its reply, if that is there.

        Args:
            message_id: nobody else asks for it at the same time.
            patience: seconds to wait for a look that goes on because the reply comes in slowly, by default
                ``LONGEST_POLL_SECONDS``. Later it still goes on, and the next call waits for it.
        """
        look = self._looks.pop(message_id, None) or self._pool.submit(self._pulled, message_id)
        wait([look], LONGEST_POLL_SECONDS if patience is None else patience)
        if look.done():
            return look.result()
        self._looks[message_id] = look
        return None

    def _pulled(self, message_id: str) -> Message | None:
        """The reply; a device that sends one that cannot be read has sent none, and Flower has deleted it."""
        try:
            return next(iter(self.grid.pull_messages([message_id])), None)
        except (ValueError, TypeError, KeyError, DecodeError) as error:
            LOG.warning("event=reply_unreadable reason=%s", json.dumps(str(error)))
            return None

    def _forget(self, node: int, message_ids: Iterable[str]) -> None:
        """Nobody waits for these any more."""
        for message_id in message_ids:
            look = self._looks.pop(message_id, None)
            if look is not None and not look.cancel():
                self._left.append(node)
                look.add_done_callback(lambda _: self._left.remove(node))


class _Signs:
    """Whether ``node`` handles messages that were sent after the one that is waited for."""

    def __init__(self, exchange: Exchange, node: int) -> None:
        self._exchange, self._node = exchange, node
        self._pause = PROBE_SECONDS
        self._next = time.monotonic() + self._pause
        self.sent: list[str] = []

    def of_life(self, left: float) -> bool:
        """Look, and send another probe when it is time; ``left`` is how many seconds anybody still waits."""
        probe = self._exchange.probe
        if probe is None:
            return False
        for message_id in self.sent:
            reply = self._exchange._reply(message_id)
            superlinks_words = reply and reply.has_error() and reply.error.code in LOST
            if reply and not superlinks_words:
                return True
        if time.monotonic() >= self._next:
            self._pause *= 2
            self._next = time.monotonic() + self._pause
            sent = self._exchange._send(self._node, "query.hello", encode(probe), left)
            self.sent += [sent] if sent else []
        return False


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
