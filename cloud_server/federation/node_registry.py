"""Which node belongs to which client, kept up to date during the run.

A device may come late, vanish and come back, also as another node. One thread checks which nodes are online and asks
every new node to introduce itself. A job waits here for its own client's device, and for no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from fedstill.cloud_server.distillation.rounds import DeviceFailure
from fedstill.cloud_server.federation.exchange import DeviceLost, Exchange
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.journal import Journal
from fedstill.protos.messages import Hello, HelloRequest
from fedstill.protos.releases import is_older, why_not_together

LOG = logging.getLogger(__name__)

FIRST_LOOK_SECONDS, LOOK_SECONDS = 0.05, 1.0
INTRODUCTIONS = 32
"""How many nodes introduce themselves at the same time. Most of them wait for their link."""
AGAIN_TIMEOUT = 60.0
"""Seconds for a known device to introduce itself again. A new one may be slow to start, and has as long as for any
question."""
TOLD_TIMEOUT = 25.0
"""Seconds to tell a device something: whoever hears nothing for 30 s may leave."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until a node that could not introduce itself is asked again, doubled each time."""


class _PlaceTaken(DeviceFailure):
    """Another node is this client's device at present: perhaps its own of before, and nobody knows yet that it died."""

    def __init__(self, client: int) -> None:
        super().__init__(f"says it is client {client}, which another device already is")
        self.client = client


@dataclass
class NodeRegistry:
    """Use as a context manager.

    Attributes:
        clip_format: the format of the run's clips, sent to devices.
        clients: how many clients the run has; 0 .. clients - 1.
        names: the registered name of each client's device if nodes are authenticated, else empty. A node's name is
            bound to its key, so no node can take another's place.
        looked: a file whose time is that of the last look at the nodes, for those who read the journal; None: no file.
    """

    exchange: Exchange
    clients: int
    journal: Journal
    metrics: Metrics
    clip_format: str
    names: Sequence[str] = ()
    looked: Path | None = None
    _nodes: dict[int, int] = field(default_factory=dict)
    _heard: dict[int, Hello] = field(default_factory=dict)  # of those in _nodes, as _asked_at
    _seen: set[int] = field(default_factory=set)  # clients that had a device before
    _asked: set[int] = field(default_factory=set)
    _asked_at: dict[int, float] = field(default_factory=dict)
    _pauses: dict[int, tuple[float, float]] = field(default_factory=dict)
    _meeting: set[int] = field(default_factory=set)
    _late: set[int] = field(default_factory=set)
    _without_place: dict[int, int] = field(default_factory=dict)  # node: whose place it wants
    _before: dict[int, str] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> NodeRegistry:
        self._before = self.journal.online_nodes()
        self._pool, self._again, self._telling = (ThreadPoolExecutor(INTRODUCTIONS) for _ in range(3))
        self._thread = threading.Thread(target=self._watch, name="roster", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for pool in (self._pool, self._again, self._telling):
            pool.shutdown(cancel_futures=True)

    def follow(self, clients: int, names: Sequence[str]) -> None:
        """Devices were issued or revoked: as the attributes of the same names."""
        with self._changed:
            if (clients, tuple(names)) == (self.clients, tuple(self.names)):
                return
            self.clients, self.names = clients, tuple(names)
            for client in list(self._nodes):
                if names and not (client < len(names) and names[client]):
                    self._lose(client, "revoked")
                    self._ask_those_without_place({client})
            self._asked &= set(self._nodes.values())  # who was refused may take part now

    def present(self) -> dict[int, Hello]:
        """The devices that are online, by client, as they introduced themselves."""
        with self._changed:
            return {client: self._heard[node] for client, node in self._nodes.items()}

    def uses(self, client: int, student: str) -> None:
        """Record which student a client's device has now: one for its clips as they are."""
        with self._changed:
            node = self._nodes.get(client)
            if node is not None:
                self._heard[node] = replace(self._heard[node], student=student, change="")

    def ask_again(self, clients: Collection[int], pause: float) -> None:
        """Have those of these devices introduce themselves again that have not done so for ``pause`` seconds."""
        with self._changed:
            now = time.monotonic()
            for client in clients:
                node = self._nodes.get(client)
                if node is not None and now - self._asked_at.get(node, now) >= pause:
                    self._asked_at[node] = now
                    self._again.submit(self._meet_again, client, node)

    def settled(self, client: int) -> None:
        """Tell a client's device that no student is to come, so that it need not wait; best effort."""
        self._tell(client, replace(self.greeting, settled=True))

    def begun(self, client: int) -> Future[None] | None:
        """Tell a client's device that a student is being made for it, so that it stays; best effort. The first question
        may be long in coming: others are before it, and what the device has told once is not asked again. What is
        returned can be cancelled while it was not sent."""
        return self._tell(client, replace(self.greeting, begun=True))

    def _tell(self, client: int, greeting: HelloRequest) -> Future[None] | None:
        with self._changed:
            node = self._nodes.get(client)
            if node is None or is_older(self._heard[node].version, version("fedstill")):
                return None
            return self._telling.submit(self._tell_node, node, greeting)

    @property
    def greeting(self) -> HelloRequest:
        """What every node is asked first."""
        return HelloRequest(version("fedstill"), self.clip_format)

    @property
    def met(self) -> bool:
        """Whether any device has been usable so far."""
        return bool(self._seen)

    def node(self, client: int, timeout: float) -> int:
        """The node of ``client``, as soon as it is online.

        Raises:
            DeviceLost: it was not there for ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: client in self._nodes, timeout):
                raise DeviceLost(f"its device was not online for {timeout:.0f} s")
            return self._nodes[client]

    def late(self, client: int) -> None:
        """Record that a client's device did not answer a request."""
        with self._changed:
            if client in self._nodes and client not in self._late:
                self._late.add(client)
                self._note(client, self._nodes[client], "late")

    def answered(self, client: int) -> None:
        """Record that a client's device is no longer late."""
        with self._changed:
            if client in self._late and client in self._nodes:
                self._late.remove(client)
                self._note(client, self._nodes[client], "connected")

    def _watch(self) -> None:
        pause = FIRST_LOOK_SECONDS
        while not self._stop.wait(pause):
            pause = min(1.5 * pause, LOOK_SECONDS)
            try:
                self._look()
            except Exception as error:  # the connection may fail for a moment; the next look tries again
                LOG.warning("event=roster_blind reason=%r", error)

    def _look(self) -> None:
        online = self.exchange.online()
        with self._changed:
            gone = [client for client, node in self._nodes.items() if node not in online]
            for client in gone:
                self._lose(client, "dead")
            self._forget_earlier(online)
            self._ask_those_without_place(gone)
            self._asked &= online  # a node that went away introduces itself again: it may have lost its files
            now = time.monotonic()
            paused = {node for node, (until, _) in self._pauses.items() if now < until}
            kept = online | paused  # whoever comes and goes is not asked at every coming
            self._without_place = {
                node: client for node, client in self._without_place.items() if node in kept
            }
            self._pauses = {node: pause for node, pause in self._pauses.items() if node in kept}
            new = sorted(online - self._asked - self._meeting - paused - set(self._nodes.values()))
            self._asked |= set(new)
            self._meeting |= set(new)
        for node in new:
            self._pool.submit(self._meet, node)
        if self.looked is not None:
            with suppress(OSError):
                self.looked.touch()

    def _ask_those_without_place(self, free: Collection[int]) -> None:
        """Have the next look ask whoever waits for one of these clients' places."""
        for node, client in self._without_place.items():
            if client in free:
                self._pauses.pop(node, None)

    def _forget_earlier(self, online: Collection[int]) -> None:
        """Devices that went away while no cloud looked, and so are online for the journal for ever."""
        for client, node in list(self._before.items()):
            known = self._nodes.get(client) is not None
            if not known and int(node) not in online:
                self.journal.lose_node(client)
                self.metrics.emit("device", client=client, node=node, state="dead")
            if known or int(node) not in online:
                self._before.pop(client)

    def _meet(self, node: int) -> None:
        try:
            hello = self._introduced(node)
            with self._changed:
                self._register(node, hello)
                self._pauses.pop(node, None)
                self._without_place.pop(node, None)
        except DeviceLost:
            self._meet_later(node)
        except DeviceFailure as failure:
            if not (isinstance(failure, _PlaceTaken) and node in self._without_place):
                self.metrics.emit("refused", node=str(node), reason=str(failure))
            if isinstance(failure, _PlaceTaken):
                with self._changed:
                    self._without_place[node] = failure.client
                self._meet_later(node)
        except Exception:  # of whatever kind: no device may be forgotten
            LOG.exception("event=introduction_failed node=%d", node)
            self._meet_later(node)
        finally:
            with self._changed:
                self._meeting.discard(node)

    def _meet_later(self, node: int) -> None:
        """While it is online; the longer, the more often that was in vain."""
        with self._changed:
            _, pause = self._pauses.get(node, (0.0, FIRST_PAUSE))
            self._pauses[node] = time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE)
            self._asked.discard(node)

    def _meet_again(self, client: int, node: int) -> None:
        """Remember what a known node says of itself now, unless something else was learned of it meanwhile."""
        before = self._heard.get(node)
        if before is None:  # it went away meanwhile
            return
        try:
            hello = self._introduced(node, AGAIN_TIMEOUT)
        except DeviceFailure as failure:
            LOG.info("event=not_heard_again client=%d reason=%s", client, failure)
            return
        with self._changed:
            if self._nodes.get(client) == node and self._heard[node] is before and hello.partition == client:
                self._heard[node] = hello

    def _tell_node(self, node: int, greeting: HelloRequest) -> None:
        try:
            self.exchange.ask(node, "query.hello", greeting, Hello, TOLD_TIMEOUT)
        except DeviceFailure as failure:
            LOG.info("event=not_told node=%d reason=%s", node, failure)

    def _introduced(self, node: int, timeout: float | None = None) -> Hello:
        """A node's introduction. Raises DeviceFailure if it may not take part."""
        ours = version("fedstill")
        hello, _ = self.exchange.ask(node, "query.hello", self.greeting, Hello, timeout)
        if reason := why_not_together(hello.version, ours):
            raise DeviceFailure(reason)
        if not 0 <= hello.partition < self.clients:
            raise DeviceFailure(
                f"says it is client {hello.partition}; this run has clients 0 to {self.clients - 1}"
            )
        if self.names and not self.names[hello.partition]:
            raise DeviceFailure(f"says it is client {hello.partition}, whose credentials are revoked")
        if self.names and self._registered(node) != self.names[hello.partition]:
            raise DeviceFailure(f"says it is client {hello.partition}, which its certificate does not cover")
        return hello

    def _registered(self, node: int) -> str:
        with self.exchange.lock:
            return next((info.name for info in self.exchange.grid.get_nodes() if info.node_id == node), "")

    def _register(self, node: int, hello: Hello) -> None:
        taken = self._nodes.get(hello.partition)
        if taken is not None and taken != node:
            raise _PlaceTaken(hello.partition)
        known = hello.partition in self._seen
        self._seen.add(hello.partition)
        self._nodes[hello.partition] = node
        self._heard[node] = hello
        self._asked_at[node] = time.monotonic()
        self._note(hello.partition, node, "revived" if known else "connected")
        self._changed.notify_all()

    def _lose(self, client: int, state: str) -> None:
        node = self._nodes.pop(client)
        self._note(client, node, state)
        del self._heard[node], self._asked_at[node]

    def _note(self, client: int, node: int, state: str) -> None:
        hello = self._heard[node]
        self.journal.see_node(client, str(node), hello.name, hello.version, state)
        self.metrics.emit("device", client=client, node=str(node), state=state)
