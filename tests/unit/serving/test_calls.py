"""Request ids: whatever a client sends becomes a short printable text, and the log says whose line it is."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.callers import call as calls
from fedstill.cloud_server.serving.callers.call import LONGEST_ID, begin, current, log_fields, printable


@pytest.fixture(autouse=True)
def no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are no tasks of their own: each begins without a call."""
    monkeypatch.setattr(calls, "_CURRENT", ContextVar("test", default=None))


@given(st.text(max_size=300))
def test_an_id_is_bounded_and_printable_ascii(text: str) -> None:
    made = printable(text)
    assert len(made) <= LONGEST_ID
    assert made.isascii()
    assert made.isprintable()
    assert made == made.strip()  # HTTP allows no blanks at the ends of a header


def test_an_id_is_kept_or_made() -> None:
    assert printable("a-1 b") == "a-1 b"
    assert printable("a\nb\x00é") == "a?b??"
    assert begin("mine").request_id == "mine"
    first, second = begin("  ").request_id, begin("").request_id
    assert first != second
    assert len(first) == 16


def test_the_protocols_id_comes_after_the_header_and_before_ours() -> None:
    call = begin("header")
    call.name("protocol")
    assert call.request_id == "header"
    call = begin("")
    call.name("")
    assert len(call.request_id) == 16
    call.name("protocol")
    assert call.request_id == "protocol"


def test_calls_that_run_at_once_keep_apart() -> None:
    async def answer(name: str, node: str) -> dict[str, str]:
        begin(name).node = node
        await asyncio.sleep(0)
        assert current().request_id == name
        return log_fields()

    async def both() -> list[dict[str, str]]:
        return await asyncio.gather(answer("a", "shop"), answer("b", ""))

    assert asyncio.run(both()) == [{"request_id": "a", "node": "shop"}, {"request_id": "b"}]
    assert log_fields() == {}
    assert current().node == ""
