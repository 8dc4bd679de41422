"""How the report writes figures: numbers, shares, intervals, tables, and whether an interval shows a leak."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedstill.evaluation.redteam.intervals import Measured


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [_line(heads), _line(["---"] * len(heads)), *(_line(row) for row in rows)]


def verdict(what: str, value: Measured, nothing: float, write: Callable[[float], str]) -> tuple[bool, str]:
    """Whether the interval lies above ``nothing``, an attacker's success without an upload, and the words for it."""
    return value.low > nothing, f"{what} ({write(value.value)}, no information {write(nothing)})"


def finding(title: str, found: Sequence[tuple[bool, str]]) -> str:
    """One sentence about one kind of upload, from its verdicts."""
    leaks = [text for leak, text in found if leak]
    quiet = [text for leak, text in found if not leak]
    parts = [f"leaks {', '.join(leaks)}"] if leaks else []
    if quiet:
        parts.append(f"not shown to leak {', '.join(quiet)}")
    return f"**{title}**: {'; '.join(parts)}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def decimal(value: float) -> str:
    return f"{value:.2f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def interval(one: Measured) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def percent_interval(one: Measured) -> str:
    return f"{100 * one.value:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]"
