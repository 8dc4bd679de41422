"""A request or its reply can vanish between Flower's processes without a word; whoever waits finds out and asks again.

Flower's SuperNode takes one message at a time, the oldest first. ``Nodes`` does so too, on real clocks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.superlink.grid import HttpGrid

from fedstill.cloud_server.federation import device_line, exchange
from fedstill.cloud_server.federation.device_line import DeviceLine
from fedstill.cloud_server.federation.exchange import DeviceLost, Exchange
from fedstill.cloud_server.federation.node_registry import NodeRegistry
from fedstill.cloud_server.federation.server_app import in_order
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.journal import open_journal
from fedstill.protos.messages import Hello, HelloRequest
from fedstill.protos.records import encode
from fedstill.simulation.inprocess import InProcessGrid

PROBE = 0.2
ASKED = HelloRequest("1", "{}")
WORK = "query.work"
device = ClientApp()


@device.query("hello")
def hello(message: Message, context: Context) -> Message:
    return Message(encode(Hello("me", "1", 0)), reply_to=message)


@device.query("work")
def work(message: Message, context: Context) -> Message:
    return Message(encode(Hello("worked", "1", 0)), reply_to=message)


class Nodes(InProcessGrid):
    """One node whose ``work`` takes ``seconds``; of the messages with the numbers in ``lost``, no reply comes.

    ``dead``: from now on the SuperLink answers instead, as it does for a node that went away.
    """

    def __init__(self, seconds: float = 0.0, lost: Iterable[int] = ()) -> None:
        super().__init__(device, 1, {})
        self.seconds, self.lost = seconds, set(lost)
        self.sent: list[str] = []
        self._free, self._ready = 0.0, dict[str, float]()

    def push_messages(self, messages: Iterable[Message]) -> Iterator[str]:
        for message in messages:
            kind = message.metadata.message_type
            number = len(self.sent)
            self.sent.append(kind)
            (identity,) = super().push_messages([message])
            self._free = max(time.monotonic(), self._free) + (self.seconds if kind == WORK else 0)
            self._ready[identity] = float("inf") if number in self.lost else self._free
            yield identity

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(one for one in message_ids if self._ready[one] <= time.monotonic())


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PROBE_SECONDS", PROBE)
    monkeypatch.setattr(exchange, "LONGEST_POLL_SECONDS", 0.05)
    monkeypatch.setattr(device_line, "AGAIN_SECONDS", 0.01)


class SlowLink(Nodes):
    """A reply is there, but has to come in over its device's link: a look that finds it ends once it has."""

    def __init__(self) -> None:
        super().__init__()
        self.coming = threading.Event()
        self.slow = WORK

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(super().pull_messages(message_ids))
        if any(reply.metadata.message_type == self.slow for reply in found):
            assert self.coming.wait(20)
        return found


def asking(grid: Nodes, timeout: float = 20.0) -> tuple[int, Exchange]:
    (node,) = grid.get_node_ids()
    return node, Exchange(grid, timeout, probe=ASKED)


def test_a_lost_reply_is_noticed_long_before_the_time_is_over() -> None:
    node, found = asking(Nodes(lost=[0]))
    begun = time.monotonic()
    with pytest.raises(DeviceLost, match="lost on the way"):
        found.ask(node, WORK, ASKED, Hello)
    assert time.monotonic() - begun < 5


def test_a_lost_probe_is_followed_by_another() -> None:
    node, found = asking(grid := Nodes(lost=[0, 1]))
    with pytest.raises(DeviceLost, match="lost on the way"):
        found.ask(node, WORK, ASKED, Hello)
    assert grid.sent == [WORK, "query.hello", "query.hello"]


def test_long_work_is_waited_for_and_disturbed_seldom() -> None:
    node, found = asking(grid := Nodes(seconds=15 * PROBE))
    reply, _ = found.ask(node, WORK, ASKED, Hello)
    assert reply.name == "worked"
    assert grid.sent == [WORK, *["query.hello"] * 3]  # after 1, 3 and 7 times PROBE


def test_quick_work_is_never_disturbed() -> None:
    node, found = asking(grid := Nodes())
    for _ in range(20):
        found.ask(node, WORK, ASKED, Hello)
    assert grid.sent == [WORK] * 20


def test_what_the_superlink_says_of_a_probe_is_no_sign_of_life() -> None:
    grid = Nodes(seconds=3 * PROBE)
    node, found = asking(grid)
    deliver = grid.push_messages

    def gone_for_a_moment(messages: Iterable[Message]) -> Iterator[str]:
        grid._dead = {0} if grid.sent else set()
        return deliver(messages)

    grid.push_messages = gone_for_a_moment  # type: ignore[method-assign]
    reply, _ = found.ask(node, WORK, ASKED, Hello)
    assert reply.name == "worked"
    assert "query.hello" in grid.sent


def test_nodes_without_an_order_are_never_probed() -> None:
    grid = Nodes(lost=[0])
    (node,) = grid.get_node_ids()
    with pytest.raises(DeviceLost, match="no reply within"):
        Exchange(grid, 5 * PROBE).ask(node, WORK, ASKED, Hello)
    assert grid.sent == [WORK]


def test_a_line_asks_again_and_gets_its_answer(tmp_path: Path) -> None:
    _, found = asking(Nodes(lost=[0, 2]))
    metrics, journal = Metrics(tmp_path), open_journal(tmp_path)
    registry = NodeRegistry(found, 1, journal, metrics, "{}")
    registry._nodes[0], registry._heard = (next(iter(found.grid.get_node_ids()))), {1000: Hello("me", "1", 0)}
    begun = time.monotonic()
    reply, _ = DeviceLine(found, registry, 0, 20.0).ask(WORK, ASKED, Hello)
    assert reply.name == "worked"
    assert time.monotonic() - begun < 10
    metrics.close()
    journal.close()


def test_real_fleets_are_in_order_and_simulations_are_not() -> None:
    assert in_order(HttpGrid.__new__(HttpGrid))
    assert not in_order(Nodes())


def test_a_reply_that_comes_in_slowly_keeps_nobody_else_waiting() -> None:
    grid = SlowLink()
    node, asked = asking(grid)
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(asked.ask, node, WORK, ASKED, Hello, 4 * PROBE) for _ in range(3)]
        while grid.sent.count(WORK) < 3:
            time.sleep(0.01)
        for _ in range(3):
            asked.ask(node, "query.hello", ASKED, Hello)
            assert asked.online() == {node}
        assert not any(one.done() for one in slow)
        grid.coming.set()
        assert [one.result(20)[0].name for one in slow] == ["worked"] * 3


def test_a_reply_that_is_coming_in_when_the_time_is_over_is_waited_for() -> None:
    node, found = asking(grid := SlowLink(), timeout=5 * PROBE)
    found.probe = None
    threading.Timer(7 * PROBE, grid.coming.set).start()
    reply, _ = found.ask(node, WORK, ASKED, Hello)
    assert reply.name == "worked"


def test_a_reply_that_was_cut_off_on_its_way_is_lost_once_the_device_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower itself waits for the rest for three minutes."""
    monkeypatch.setattr(exchange, "ARRIVAL_SECONDS", 5 * PROBE)
    node, found = asking(grid := SlowLink())
    begun = time.monotonic()
    with pytest.raises(DeviceLost, match="lost on the way"):
        found.ask(node, WORK, ASKED, Hello)
    assert 5 * PROBE < time.monotonic() - begun < 10
    grid.slow = ""
    reply, _ = found.ask(node, WORK, ASKED, Hello)
    assert reply.name == "worked"
    grid.coming.set()


def test_a_reply_whose_last_part_flower_has_not_looked_for_yet_is_not_lost() -> None:
    """The device goes on as soon as it has sent the last part, and Flower looks again some seconds later."""
    node, found = asking(grid := SlowLink())
    threading.Timer(8 * PROBE, grid.coming.set).start()
    reply, _ = found.ask(node, WORK, ASKED, Hello)
    assert reply.name == "worked"
    assert grid.sent.count(WORK) == 1


def test_replies_that_never_end_hold_up_nobody_and_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that announces replies, sends a part now and then, and takes the next message."""
    monkeypatch.setattr(exchange, "ARRIVAL_SECONDS", PROBE)
    node, found = asking(grid := SlowLink())
    for _ in range(exchange.MOST_LEFT):
        with pytest.raises(DeviceLost, match="lost on the way"):
            found.ask(node, WORK, ASKED, Hello)
    sent = len(grid.sent)
    for _ in range(20):
        with pytest.raises(DeviceLost, match="coming in for long"):
            found.ask(node, WORK, ASKED, Hello)
    assert len(grid.sent) == sent
    grid.coming.set()
    end = time.monotonic() + 10
    while True:  # as soon as they have ended
        try:
            assert found.ask(node, WORK, ASKED, Hello)[0].name == "worked"
            break
        except DeviceLost:
            assert time.monotonic() < end


def test_a_reply_that_never_ends_is_waited_for_twice_the_time() -> None:
    node, found = asking(grid := SlowLink(), timeout=5 * PROBE)
    found.probe = None
    begun = time.monotonic()
    with pytest.raises(DeviceLost, match="no reply within"):
        found.ask(node, WORK, ASKED, Hello)
    assert 9 * PROBE < time.monotonic() - begun < 10
    grid.coming.set()


class SlowAnswer(Nodes):
    """What the SuperLink says of one look, that nothing is there yet, takes a while to arrive."""

    def __init__(self) -> None:
        super().__init__(seconds=2 * PROBE)
        self.slow = True

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        found = list(super().pull_messages(asked))
        if self.slow and not found and self._ready[asked[0]] - time.monotonic() < PROBE / 2:
            self.slow = False
            time.sleep(exchange.PROBE_SECONDS + 0.5)
        return found


def test_a_look_that_began_before_the_reply_came_is_no_proof_that_it_is_lost() -> None:
    node, found = asking(grid := SlowAnswer())
    reply, _ = found.ask(node, WORK, ASKED, Hello)
    assert reply.name == "worked"
    assert grid.sent.count(WORK) == 1
    assert not grid.slow


class Unreadable(Nodes):
    """The first look finds a reply that cannot be read; Flower has deleted it."""

    looks = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(super().pull_messages(list(message_ids)))
        self.looks += 1
        if self.looks == 1 and found:
            raise ValueError("no object content")
        return found


def test_a_reply_that_cannot_be_read_is_lost_and_no_failure_of_who_looked() -> None:
    node, found = asking(Unreadable())
    with pytest.raises(DeviceLost, match="lost on the way"):
        found.ask(node, WORK, ASKED, Hello)
    reply, _ = found.ask(node, WORK, ASKED, Hello)
    assert reply.name == "worked"
