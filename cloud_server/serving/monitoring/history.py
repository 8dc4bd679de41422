"""The history of a server: five minutes by the second, an hour and a day in longer steps, in memory that does not grow.

A row is a stretch of time on a clock that never falls, so the wall clock may jump. Longer steps are made of the same
tallies as shorter ones, not of their averages: a percentile of two minutes is one of all answers of two minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.monitoring.tally import Key, Tally

SLACK_SECONDS = 0.5
"""A row may be shorter than its step by as much: ticks do not come at whole seconds."""
MOST_COLUMNS = 1024
"""Figures of all tasks, schedules and trunks; more of them are not kept."""

Column = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Span:
    """name: in a request. step_seconds: of a row. rows: that are kept."""

    name: str
    step_seconds: float
    rows: int


SPANS = (Span("5m", 1.0, 300), Span("1h", 10.0, 360), Span("1d", 120.0, 720))


@dataclass(frozen=True)
class Rows:
    """Some rows of a span, oldest first.

    next: number of the row after the last one; ask for what came later with it. ends: seconds on the history's clock.
    seconds: that a row covers. values: float32 (rows,) by key; NaN if there is no value.
    """

    next: int
    ends: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    values: dict[Key, Column]


class _Ring:
    """The rows of one span."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._ends, self._seconds = np.zeros(span.rows), np.zeros(span.rows)
        self._columns: dict[Key, Column] = {}
        self._count = 0
        self._open = Tally()

    def add(self, tally: Tally, now: float) -> None:
        self._open.merge(tally)
        if self._open.seconds < self.span.step_seconds - SLACK_SECONDS:
            return
        done, self._open = self._open, Tally()
        place = self._count % self.span.rows
        self._ends[place], self._seconds[place] = now, done.seconds
        row = done.row()
        for key in row:
            if key not in self._columns and len(self._columns) < MOST_COLUMNS:
                self._columns[key] = np.full(self.span.rows, np.nan, dtype=np.float32)
        for key, column in self._columns.items():
            column[place] = row.get(key, math.nan)
        self._count += 1

    def read(self, after: int, wanted: Callable[[Key], bool]) -> Rows:
        first = max(after, self._count - self.span.rows, 0)
        places = np.arange(first, self._count) % self.span.rows
        values = {key: column[places] for key, column in self._columns.items() if wanted(key)}
        return Rows(self._count, self._ends[places], self._seconds[places], values)

    def total(self, key: Key, oldest: float) -> float:
        open_sum = self._open.sums.get(key, 0.0)
        column = self._columns.get(key)
        if column is None:
            return open_sum
        kept = np.arange(self.span.rows) < self._count
        recent = kept & (self._ends > oldest) & ~np.isnan(column)
        return open_sum + float((column[recent] * self._seconds[recent]).sum())

    def forget(self, gone: Callable[[Key], bool]) -> None:
        self._columns = {key: column for key, column in self._columns.items() if not gone(key)}


class History:
    """To be used under one lock."""

    def __init__(self, spans: Sequence[Span] = SPANS) -> None:
        self._rings = {span.name: _Ring(span) for span in spans}
        self._middle = spans[min(1, len(spans) - 1)].name

    def add(self, tally: Tally, now: float) -> None:
        """A stretch of time has passed. now: its end; later than the last one."""
        for ring in self._rings.values():
            ring.add(tally, now)

    def read(self, span: str, after: int = 0, wanted: Callable[[Key], bool] = lambda _: True) -> Rows:
        """The rows from number ``after`` on that are still kept. Raises KeyError for an unknown span."""
        return self._rings[span].read(after, wanted)

    def total(self, key: Key, seconds: float, now: float) -> float:
        """The sum of the last so many seconds, at most an hour, to within some ten seconds."""
        return self._rings[self._middle].total(key, now - seconds)

    def forget(self, gone: Callable[[Key], bool]) -> None:
        """Columns of what is no longer served."""
        for ring in self._rings.values():
            ring.forget(gone)
