"""The registry of nodes tells the journal who is there, also after a time in which nobody looked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedstill.cloud_server.federation import node_registry
from fedstill.cloud_server.federation.exchange import DeviceLost, Exchange
from fedstill.cloud_server.federation.node_registry import NodeRegistry
from fedstill.cloud_server.journal.event_log import Metrics, read_events
from fedstill.cloud_server.journal.journal import Journal, open_journal
from fedstill.protos.messages import Hello

HALL, KITCHEN = 11, 12


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Of a cloud that was ended while both devices were online."""
    found = open_journal(tmp_path)
    for client, node in enumerate((HALL, KITCHEN)):
        found.see_node(client, str(node), f"device-{client}", "0.1.0", "connected")
    yield found
    found.close()


def asked(*_: Any) -> Any:
    raise DeviceLost("it does not answer")


def test_a_device_that_left_while_no_cloud_looked_is_not_online_any_more(
    journal: Journal, tmp_path: Path
) -> None:
    exchange = cast(Exchange, SimpleNamespace(online=lambda: {KITCHEN}, ask=asked))
    metrics = Metrics(tmp_path)
    assert journal.online_nodes() == {0: str(HALL), 1: str(KITCHEN)}
    looked = tmp_path / "looked"
    with NodeRegistry(exchange, 2, journal, metrics, "{}", looked=looked):
        limit = time.monotonic() + 10
        while 0 in journal.online_nodes():
            assert time.monotonic() < limit
            time.sleep(0.01)
        while not looked.exists():
            assert time.monotonic() < limit
            time.sleep(0.01)
    metrics.close()
    assert journal.online_nodes() == {1: str(KITCHEN)}, "who is still online for Flower may answer any moment"
    told = [
        (event["client"], event["state"]) for event in read_events(tmp_path) if event["event"] == "device"
    ]
    assert told == [(0, "dead")]


def test_a_node_that_comes_and_goes_is_not_asked_at_every_coming(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first question waits for its link it would take one place after the other."""
    monkeypatch.setattr(node_registry, "FIRST_PAUSE", 60.0)
    asked_of, goes_on, looks = list[int](), threading.Event(), list[int]()

    def ask(node: int, *_: Any) -> Any:
        asked_of.append(node)
        assert goes_on.wait(20)
        raise DeviceLost("it does not answer")

    def online() -> set[int]:
        looks.append(1)
        return {KITCHEN} if len(looks) % 2 else set()

    metrics = Metrics(tmp_path)
    registry = NodeRegistry(
        cast(Exchange, SimpleNamespace(online=online, ask=ask)), 2, journal, metrics, "{}"
    )
    with registry:
        limit = time.monotonic() + 20
        while not asked_of:
            assert time.monotonic() < limit
            time.sleep(0.01)
        for _ in range(10):
            registry._look()
        assert asked_of == [KITCHEN]
        goes_on.set()
        while registry._meeting:
            assert time.monotonic() < limit
            time.sleep(0.01)
        for _ in range(10):
            registry._look()
        assert asked_of == [KITCHEN], "nor in its pause"
    metrics.close()


@pytest.mark.parametrize("failure", [DeviceLost("it does not answer"), KeyError("half a message")])
def test_a_node_that_cannot_introduce_itself_is_asked_again_ever_more_seldom(
    journal: Journal, tmp_path: Path, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_registry, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(node_registry, "LOOK_SECONDS", 0.05)
    times = list[float]()

    def ask(*_: Any) -> Any:
        times.append(time.monotonic())
        raise failure

    exchange = cast(Exchange, SimpleNamespace(online=lambda: {KITCHEN}, ask=ask))
    metrics = Metrics(tmp_path)
    with NodeRegistry(exchange, 2, journal, metrics, "{}"):
        limit = time.monotonic() + 20
        while len(times) < 4:
            assert time.monotonic() < limit
            time.sleep(0.01)
    metrics.close()
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[0] > 0.19
    assert pauses[1] > 0.39
    assert pauses[2] > 0.79


def test_a_device_that_comes_back_as_another_node_gets_its_place_once_the_old_one_is_dead(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials every start of an agent is another node, and Flower believes in the old one for a while."""
    monkeypatch.setattr(node_registry, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(node_registry, "LOOK_SECONDS", 0.02)
    online = {KITCHEN}

    def ask(*_: Any) -> Any:
        return Hello("hall", version("fedstill"), 0), None

    metrics = Metrics(tmp_path)
    exchange = SimpleNamespace(online=lambda: set(online), ask=ask)
    with NodeRegistry(cast(Exchange, exchange), 2, journal, metrics, "{}") as registry:
        assert registry.node(0, 20.0) == KITCHEN
        online.add(HALL)
        time.sleep(0.5)  # it asks several times
        online.remove(KITCHEN)
        limit = time.monotonic() + 20
        while registry.node(0, 20.0) != HALL:
            assert time.monotonic() < limit
            time.sleep(0.01)
    refused = [one for one in read_events(tmp_path) if one["event"] == "refused"]
    assert len(refused) == 1, "one line, however often it asks"


@pytest.mark.parametrize("revoked", [False, True])
def test_who_waits_for_a_place_is_asked_at_once_when_that_one_is_free_and_not_for_another(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revoked: bool
) -> None:
    monkeypatch.setattr(node_registry, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(node_registry, "LOOK_SECONDS", 0.02)
    attic, online, asked_of = 33, {KITCHEN, HALL}, list[int]()

    def ask(node: int, *_: Any) -> Any:
        asked_of.append(node)
        return Hello("x", version("fedstill"), 1 if node == HALL else 0), None

    def get_nodes() -> list[SimpleNamespace]:
        return [
            SimpleNamespace(node_id=node, name="hall" if node == HALL else "kitchen")
            for node in (KITCHEN, HALL, attic)
        ]

    def wait_until(reached: Callable[[], bool]) -> None:
        limit = time.monotonic() + 20
        while not reached():
            assert time.monotonic() < limit
            time.sleep(0.01)

    grid = SimpleNamespace(get_nodes=get_nodes)
    exchange = SimpleNamespace(online=lambda: set(online), ask=ask, grid=grid, lock=threading.Lock())
    names = ("kitchen", "hall")
    with NodeRegistry(cast(Exchange, exchange), 2, journal, Metrics(tmp_path), "{}", names) as registry:
        assert (registry.node(0, 20.0), registry.node(1, 20.0)) == (KITCHEN, HALL)
        online.add(attic)
        wait_until(lambda: attic in asked_of and not registry._meeting)
        online.remove(HALL)
        wait_until(lambda: 1 not in registry.present())
        time.sleep(0.2)  # ten looks
        assert asked_of.count(attic) == 1
        if revoked:
            registry.follow(2, ("", "hall"))
            wait_until(lambda: asked_of.count(attic) == 2)
        else:
            online.remove(KITCHEN)
            wait_until(lambda: 0 in registry.present() and registry.node(0, 1.0) == attic)


def test_a_refusal_is_told_also_of_a_node_that_did_not_answer_before(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_registry, "FIRST_PAUSE", 0.05)
    asked_of = list[int]()

    def ask(node: int, *_: Any) -> Any:
        asked_of.append(node)
        if len(asked_of) == 1:
            raise DeviceLost("it does not answer")
        return Hello("hall", version("fedstill"), 7), None

    exchange = SimpleNamespace(online=lambda: {HALL}, ask=ask)
    with NodeRegistry(cast(Exchange, exchange), 2, journal, Metrics(tmp_path), "{}"):
        limit = time.monotonic() + 20
        while not (told := [one for one in read_events(tmp_path) if one["event"] == "refused"]):
            assert time.monotonic() < limit
            time.sleep(0.01)
    assert "client 7" in told[0]["reason"]
