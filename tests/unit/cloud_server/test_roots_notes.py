"""What devices say that they trust is noted soon, and no device can have more written than it needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest

from fedstill.cloud_server.auth import roots_notes
from fedstill.cloud_server.auth.roots_notes import NOTE_SECONDS, NOTES_AT_ONCE, RootsNotes


class Register:
    """Written at once, unless it is held."""

    def __init__(self) -> None:
        self.written: list[Mapping[str, tuple[str, ...]]] = []
        self.free, self.begun = threading.Event(), threading.Event()
        self.fails = 0

    def __call__(self, said: Mapping[str, tuple[str, ...]]) -> bool:
        self.begun.set()
        self.free.wait(20)
        self.fails -= 1
        self.written.append(said)
        return self.fails < 0

    def wait_for(self, writes: int) -> None:
        end = time.monotonic() + 10
        while len(self.written) < writes:
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)


def test_of_one_device_the_newest_waits_and_others_are_not_behind_it() -> None:
    register = Register()
    notes = RootsNotes(register)
    notes.put("flood", ("first",))
    assert register.begun.wait(10)
    for number in range(10_000):
        notes.put("flood", (f"{number}",))
    notes.put("hall", ("new",))
    register.free.set()
    register.wait_for(2)
    notes.close()
    assert register.written == [{"flood": ("first",)}, {"flood": ("9999",), "hall": ("new",)}]


def test_a_register_that_is_held_for_a_while_uses_up_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots_notes, "RETRY_SECONDS", 0.01)
    register = Register()
    register.free.set()
    register.fails = 3 * NOTES_AT_ONCE
    notes = RootsNotes(register)
    notes.put("hall", ("new",))
    register.wait_for(3 * NOTES_AT_ONCE + 1)
    notes.close()


def test_a_device_has_some_notes_at_once_and_then_one_a_minute() -> None:
    now = [0.0]
    notes = RootsNotes(lambda said: True, lambda: now[0])
    notes._thread = threading.current_thread()  # none of its own

    def taken(seconds: int) -> int:
        found = 0
        for _ in range(seconds):
            notes.put("flood", ("other",))
            found += len(notes.due())
            now[0] += 1.0
        return found

    assert taken(10) == NOTES_AT_ONCE
    assert taken(int(10 * NOTE_SECONDS)) == 10
    notes.put("hall", ("new",))
    assert "hall" in notes.due()
    now[0] += NOTES_AT_ONCE * NOTE_SECONDS
    assert taken(10) == NOTES_AT_ONCE, "a device that was quiet for long has as many as before"


def test_what_could_not_be_written_is_tried_again_and_what_is_newer_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roots_notes, "RETRY_SECONDS", 0.0)
    register = Register()
    register.fails = 1
    notes = RootsNotes(register)
    notes.put("hall", ("old",))
    notes.put("attic", ("old",))
    register.begun.wait(10)
    notes.put("hall", ("new",))
    register.free.set()
    register.wait_for(2)
    notes.close()
    assert {name: said for one in register.written for name, said in one.items()} == {
        "hall": ("new",),
        "attic": ("old",),
    }


def test_the_end_waits_for_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots_notes, "END_SECONDS", 0.1)
    register = Register()
    notes = RootsNotes(register)
    notes.put("hall", ("first",))
    assert register.begun.wait(10)
    notes.put("attic", ("second",))
    began = time.monotonic()
    notes.close()
    assert time.monotonic() - began < 5
    thread = notes._thread
    assert thread is not None
    assert thread.daemon, "nor does the end of the process"
    register.free.set()
    thread.join(10)
    assert register.written == [{"hall": ("first",)}]
