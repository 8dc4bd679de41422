"""Progress bars of commands: how much is done, how long it still takes, and how many items were skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedstill.cli.shared.console import errors

Count = Callable[[int, int, int], None]
"""Called with (items done, items in all, items among the done ones that are skipped)."""


@contextmanager
def counting_bar(what: str, skipped: str = "skipped") -> Iterator[Count]:
    """A bar of items, with the number of those that are ``skipped``; its last state stays."""
    with _bars() as bars:
        task = bars.add_task(what, total=None, note="")

        def count(done: int, total: int, lost: int) -> None:
            bars.update(task, completed=done, total=total, note=f"{lost} {skipped}" if lost else "")

        yield count


@contextmanager
def step_bar(what: str, steps: int) -> Iterator[Callable[[str], None]]:
    """A bar that goes one step further with each text, which says what begins now."""
    with _bars() as bars:
        task = bars.add_task(what, total=steps, note="")
        begun = 0

        def begin(text: str) -> None:
            nonlocal begun
            bars.update(task, completed=begun, note=text)
            begun += 1

        yield begin
        bars.update(task, completed=begun, note="")


@contextmanager
def text_bar(what: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """A bar for work of several stages: what is told becomes its name, what is counted its length."""
    with _bars() as bars:
        task = bars.add_task(what, total=None, note="")
        yield (
            lambda text: bars.update(task, description=text),
            lambda done, total: bars.update(task, completed=done, total=total),
        )


@contextmanager
def _bars() -> Iterator[Progress]:
    """On stderr, so that results can be piped; gone if an error follows, which is one line."""
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=errors,
    )
    with bars:
        try:
            yield bars
        except BaseException:
            bars.live.transient = True
            raise
