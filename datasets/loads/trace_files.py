"""Recorded arrivals from a CSV: relative or Unix times in any unit, or dates, as sorted seconds from zero."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError
from fedstill.datasets.files.tables import check_header, csv_rows
from fedstill.datasets.loads.arrivals import MOST_ARRIVALS, Times

UNITS = {"arrival_s": 1.0, "arrival_ms": 1e-3, "arrival_us": 1e-6, "arrival_ns": 1e-9}
"""Seconds in one unit of the column."""
UNIX_TIMES = (9.0e8, 4.2e9)
"""Seconds since 1970 from 1998 to 2103: numbers of that size, times 1000, are milliseconds, and so on."""
SLOWEST = 60.0
"""Mean seconds between arrivals. A trace with fewer loads nothing, and is most likely in a finer unit."""
LONGEST_GAP = 30 * 86_400.0
"""Seconds. A time that is further away from all others is a wrong one, such as a zero among Unix times."""


def read_trace(path: Path) -> Times:
    """Arrivals of a CSV, sorted and counted from the first one, in seconds.

    Known columns: `arrival_s`, `arrival_ms`, `arrival_us` or `arrival_ns`, whose name is the unit; or those of
    Microsoft's MAF 2021, `end_timestamp` and `duration` (seconds), from which an arrival is end - duration. A time may
    also be a date in ISO 8601 (UTC unless it says otherwise). Unix times in `arrival_s` that can only be milli-, micro-
    or nanoseconds are read as such.

    Raises:
        DataError: names the line that cannot be read, or that lies far from all others; a trace that is too long, or
            so slow that its unit must be another.
    """
    rows = csv_rows(path)
    header = [name.casefold() for name in next(rows, (1, []))[1]]
    check_header(path, header)
    unit = next((name for name in UNITS if name in header), None)
    if unit is None and not {"end_timestamp", "duration"} <= set(header):
        raise DataError(
            f"{path}: needs a column arrival_s, or end_timestamp and duration (or arrival_ms, arrival_us, arrival_ns)"
        )
    times, lines = array("d"), array("q")
    for line, cells in rows:
        if any(cells[len(header) :]):
            raise DataError(
                f"{path}, line {line}: has {len(cells)} values, the header {len(header)}: write decimals with a point"
            )
        if unit is not None:
            time = _number(path, line, header, cells, unit)
        else:
            end, duration = (
                _number(path, line, header, cells, name) for name in ("end_timestamp", "duration")
            )
            time = end - duration
        times.append(time)
        lines.append(line)
        if len(times) > MOST_ARRIVALS:
            raise DataError(f"{path}: holds more than {MOST_ARRIVALS:.0e} arrivals: take a part of it")
    if not times:
        raise DataError(f"{path}: holds no arrivals")
    return _checked(path, np.array(times), np.array(lines), unit)


def _checked(path: Path, times: Times, lines: npt.NDArray[np.int64], unit: str | None) -> Times:
    """Seconds from the first arrival, sorted."""
    times = np.multiply(times, _unit(times, unit), dtype=np.float64)
    order = np.argsort(times, kind="stable")
    times, lines = times[order], lines[order]
    gaps = np.diff(times)
    if len(gaps) and times[-1] - times[0] > SLOWEST * len(times) and np.median(gaps) > SLOWEST:
        raise DataError(
            f"{path}: {len(times)} arrivals in {times[-1] - times[0]:.0f} s are too few for a load: if these are "
            "not seconds, name the column arrival_ms, arrival_us or arrival_ns"
        )
    if len(gaps) and gaps.max() > LONGEST_GAP:
        after = int(gaps.argmax()) + 1  # the smaller side is the wrong one
        wrong = after - 1 if after <= len(times) - after else after
        days = gaps.max() / 86_400
        raise DataError(
            f"{path}, line {lines[wrong]}: lies {days:.0f} days from the other times: correct or remove it"
        )
    from_first: Times = times - times[0]
    return from_first


def _unit(times: Times, unit: str | None) -> float:
    """Seconds in one unit: as the column says, unless these are Unix times that it cannot be."""
    named = UNITS.get(unit or "", 1.0)
    if named < 1:
        return named
    first, last = np.quantile(times, (0.05, 0.95))  # a few may be wrong
    low, high = UNIX_TIMES
    return next((finer for finer in (1e-3, 1e-6, 1e-9) if low < first * finer and last * finer < high), named)


def _number(path: Path, line: int, header: Sequence[str], cells: Sequence[str], name: str) -> float:
    place = header.index(name)
    text = cells[place] if place < len(cells) else None
    try:
        value = float(text or "")
    except ValueError:
        value = _date(text or "") / UNITS.get(name, 1.0)
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: {text!r} is not a time: write a number, or a date in ISO 8601")
    return value


def _date(text: str) -> float:
    """Seconds since 1970 of a date in ISO 8601, UTC unless it says otherwise; NaN for anything else."""
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return float("nan")
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
