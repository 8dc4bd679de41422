"""Bars of commands: what is done and skipped stays on the screen, and nothing of them beside an error."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedstill.cli.shared import progress
from fedstill.cli.shared.progress import counting_bar, step_bar, text_bar


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "errors", Console(file=shown, width=120))
    return shown


def test_items_and_skipped_ones_are_counted(screen: io.StringIO) -> None:
    with counting_bar("decoding ave") as count:
        count(1, 3, 0)
        count(3, 3, 2)
    assert "decoding ave" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert "2 skipped" in screen.getvalue()


def test_a_step_is_done_when_the_next_one_begins(screen: io.StringIO) -> None:
    with step_bar("loadtest", 3) as begin:
        begin("one")
        begin("two")
    assert "2/3" in screen.getvalue()


def test_stages_are_told_and_counted(screen: io.StringIO) -> None:
    with text_bar("decoding") as (tell, count):
        tell("features [of] images")
        count(5, 8)
    assert "features [of] images" in screen.getvalue()
    assert "5/8" in screen.getvalue()


def test_an_error_leaves_no_bar_behind(screen: io.StringIO) -> None:
    def fail() -> None:
        with counting_bar("decoding") as count:
            count(1, 3, 0)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    assert screen.getvalue().strip() == ""
