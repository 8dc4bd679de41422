"""From what a client saw of a live server to the records of a load test: true labels, and the client's clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.virtual_time import EVICTED, LATE, RIGHT, WRONG
from fedstill.datasets.query_mix import Load
from fedstill.simulation.loadtest import SERIES_SECONDS, TWENTIETHS, WINDOWS
from fedstill.simulation.open_loop import Record, Reply
from fedstill.simulation.serving_results import ClientRow, RunRow, SeriesRow, percentiles

Kinds = npt.NDArray[np.int8]


def kinds_of(load: Load, labels: Sequence[str], record: Record) -> Kinds:
    """RIGHT .. EVICTED per query. labels: the true class names."""
    limit = load.deadline - load.arrival
    kinds = np.full(len(load), EVICTED, dtype=np.int8)
    for place, (reply, label) in enumerate(zip(record.replies, labels, strict=True)):
        if reply.kind == "answered":
            if record.seconds[place] > limit[place]:
                kinds[place] = LATE
            else:
                kinds[place] = RIGHT if reply.label == label else WRONG
    return kinds


def run_row(
    policy: str,
    trace: str,
    factor: float,
    seed: int,
    load: Load,
    labels: Sequence[str],
    record: Record,
    seconds: float,
) -> RunRow:
    """The record of one load on one server. seconds: of arrivals."""
    kinds = kinds_of(load, labels, record)
    answered = np.array([reply.kind == "answered" for reply in record.replies])
    right = np.array(
        [
            reply.kind == "answered" and r == reply.label
            for reply, r in zip(record.replies, labels, strict=True)
        ]
    )
    batches = batches_of(record.replies)
    sizes = Counter(size for _, size, _ in batches)
    shares = np.array([right[list(members)].mean() for members in batches.values()])
    twentieths = np.minimum(TWENTIETHS - 1, (shares * TWENTIETHS).astype(np.int64))
    batch_ms = np.array([milliseconds for _, _, milliseconds in batches])
    waiting = np.array([reply.waiting_ms for reply in record.replies])  # NaN where nobody said
    window = seconds / WINDOWS
    places = np.minimum(WINDOWS - 1, (load.arrival / window).astype(np.int64))
    earned = np.bincount(places, weights=np.where(kinds == RIGHT, load.utility, 0.0), minlength=WINDOWS)
    counts = np.bincount(kinds, minlength=EVICTED + 1)
    client = _client_row(record, answered)
    return RunRow(
        policy=policy,
        trace=trace,
        load=factor,
        seed=seed,
        queries=len(load),
        utility_offered=float(load.utility.sum()),
        utility_earned=float(load.utility[kinds == RIGHT].sum()),
        type1=int(counts[RIGHT]),
        type2=int(counts[WRONG]),
        type3=int(counts[LATE]),
        type4=int(counts[EVICTED]),
        rejected=client.refused.get("overload", 0),
        accuracy=float(right.sum()) / max(1, int(answered.sum())),
        batch_sizes=tuple(sizes[size] for size in range(1, max(sizes, default=0) + 1)),
        schedules=dict(Counter(reply.schedule for reply in record.replies if reply.kind == "answered")),
        batch_accuracy=tuple(np.bincount(twentieths, minlength=TWENTIETHS).tolist()),
        waiting_ms=dict(percentiles(waiting[np.isfinite(waiting)])),
        inference_ms=dict(percentiles(batch_ms)),
        busy=float(batch_ms.sum()) / 1000 / _span(load, record, seconds),
        loading_seconds=0.0,
        window_seconds=window,
        earned_per_window=tuple(earned.tolist()),
        client=client,
    )


def series_row(
    policy: str,
    trace: str,
    factor: float,
    seed: int,
    load: Load,
    labels: Sequence[str],
    record: Record,
    seconds: float,
    deltas: Mapping[str, int],
) -> SeriesRow:
    """The first seconds of one run. deltas: token delta by name of the schedule; the mean is over those known."""
    length = max(1, min(SERIES_SECONDS, int(seconds)))
    kinds = kinds_of(load, labels, record)
    served, known, total = (np.zeros(length, dtype=np.int64) for _ in range(3))
    for place in np.flatnonzero((kinds == RIGHT) | (kinds == WRONG)).tolist():
        reply = record.replies[place]
        second = int(load.arrival[place] + reply.waiting_ms / 1000)
        if 0 <= second < length:
            served[second] += 1
            if reply.schedule in deltas:
                known[second] += 1
                total[second] += deltas[reply.schedule]
    return SeriesRow(
        policy=policy,
        trace=trace,
        load=factor,
        seed=seed,
        incoming=tuple(np.bincount(load.arrival.astype(np.int64), minlength=length)[:length].tolist()),
        served=tuple(served.tolist()),
        token_delta=tuple(
            change / count if count else None
            for change, count in zip(total.tolist(), known.tolist(), strict=True)
        ),
    )


def batches_of(replies: Sequence[Reply]) -> dict[tuple[str, int, float], list[int]]:
    """Places of the answers that shared a batch, by schedule, size and measured time.

    The time is a clock's, which no two batches share to the last bit; so it tells them apart.
    """
    batches: dict[tuple[str, int, float], list[int]] = {}
    for place, reply in enumerate(replies):
        if reply.kind == "answered":
            batches.setdefault((reply.schedule, reply.batch_size, reply.inference_ms), []).append(place)
    return batches


def _client_row(record: Record, answered: npt.NDArray[np.bool_]) -> ClientRow:
    refused = Counter(reply.kind for reply in record.replies if reply.kind in ("too_late", "overload"))
    failed = Counter(reply.detail for reply in record.replies if reply.kind == "failed")
    return ClientRow(
        round_trip_ms=dict(percentiles(1000 * record.seconds[answered])),
        lag_ms=dict(percentiles(1000 * record.lag[np.isfinite(record.lag)])),
        refused=dict(refused),
        failed=dict(failed),
    )


def _span(load: Load, record: Record, seconds: float) -> float:
    """Until the last answer, at least `seconds`."""
    ends = load.arrival + record.seconds
    return max(seconds, float(ends[np.isfinite(ends)].max(initial=0.0)))
