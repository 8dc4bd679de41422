"""From a client's observations of a live server to the records of a load test: true labels, and the client's clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.scheduling.virtual_time import EVICTED, LATE, RIGHT, WRONG
from fedstill.datasets.loads.query_mix import Load
from fedstill.evaluation.serving.open_loop import Record, Response
from fedstill.evaluation.serving.results import ClientRow, RunRow, SeriesRow, percentiles
from fedstill.evaluation.serving.virtual import SERIES_SECONDS, TWENTIETHS, WINDOWS


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One load on one live server.

    policy: as the server reports it. trace, factor, seed: which load. labels: the true class names, per query. seconds:
    of arrivals.
    """

    policy: str
    trace: str
    factor: float
    seed: int
    load: Load
    labels: Sequence[str]
    record: Record
    seconds: float

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """Per query, whether the server answered it, in time or late."""
        return np.array([response.kind == "answered" for response in self.record.responses], dtype=np.bool_)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Per query, whether it was answered with its true class."""
        named = [
            response.label == label
            for response, label in zip(self.record.responses, self.labels, strict=True)
        ]
        return np.array(named, dtype=np.bool_) & self.answered

    def kinds(self) -> npt.NDArray[np.int8]:
        """RIGHT .. EVICTED per query."""
        late = self.record.seconds > self.load.deadline - self.load.arrival
        served = np.where(late, LATE, np.where(self.right, RIGHT, WRONG))
        return np.where(self.answered, served, EVICTED).astype(np.int8)


def run_row(run: LiveRun) -> RunRow:
    """The record of a run."""
    load, responses, right, kinds = run.load, run.record.responses, run.right, run.kinds()
    answers = [response for response in responses if response.kind == "answered"]
    batches = batches_of(responses)
    sizes = Counter(size for _, size, _ in batches)
    shares = np.array([right[members].mean() for members in batches.values()])
    twentieths = np.minimum(TWENTIETHS - 1, (shares * TWENTIETHS).astype(np.int64))
    batch_ms = np.array([milliseconds for _, _, milliseconds in batches])
    waiting = np.array([response.waiting_ms for response in answers])
    window = run.seconds / WINDOWS
    places = np.minimum(WINDOWS - 1, (load.arrival / window).astype(np.int64))
    earned = np.where(kinds == RIGHT, load.utility, 0.0)
    counts = np.bincount(kinds, minlength=EVICTED + 1)
    client = _client_row(run)
    return RunRow(
        policy=run.policy,
        trace=run.trace,
        load=run.factor,
        seed=run.seed,
        queries=len(load),
        utility_offered=float(load.utility.sum()),
        utility_earned=float(earned.sum()),
        type1=int(counts[RIGHT]),
        type2=int(counts[WRONG]),
        type3=int(counts[LATE]),
        type4=int(counts[EVICTED]),
        rejected=client.refused.get("overload", 0),
        accuracy=float(right.sum()) / max(1, len(answers)),
        batch_sizes=tuple(sizes[size] for size in range(1, max(sizes, default=0) + 1)),
        schedules=dict(Counter(response.schedule for response in answers)),
        batch_accuracy=tuple(np.bincount(twentieths, minlength=TWENTIETHS).tolist()),
        waiting_ms=dict(percentiles(waiting[np.isfinite(waiting)])),  # not every server reports it
        inference_ms=dict(percentiles(batch_ms)),
        busy=float(batch_ms.sum()) / 1000 / _span(run),
        loading_seconds=0.0,
        window_seconds=window,
        earned_per_window=tuple(np.bincount(places, weights=earned, minlength=WINDOWS).tolist()),
        client=client,
    )


def series_row(run: LiveRun, deltas: Mapping[str, int]) -> SeriesRow:
    """The first seconds of a run. deltas: token delta by name of the schedule; the mean is over those known."""
    length = max(1, min(SERIES_SECONDS, int(run.seconds)))
    kinds, arrival = run.kinds(), run.load.arrival
    served, known, total = (np.zeros(length, dtype=np.int64) for _ in range(3))
    for place in np.flatnonzero((kinds == RIGHT) | (kinds == WRONG)).tolist():
        response = run.record.responses[place]
        second = int(arrival[place] + response.waiting_ms / 1000)
        if 0 <= second < length:
            served[second] += 1
            if response.schedule in deltas:
                known[second] += 1
                total[second] += deltas[response.schedule]
    return SeriesRow(
        policy=run.policy,
        trace=run.trace,
        load=run.factor,
        seed=run.seed,
        incoming=tuple(np.bincount(arrival.astype(np.int64), minlength=length)[:length].tolist()),
        served=tuple(served.tolist()),
        token_delta=tuple(
            change / count if count else None
            for change, count in zip(total.tolist(), known.tolist(), strict=True)
        ),
    )


def batches_of(responses: Sequence[Response]) -> dict[tuple[str, int, float], list[int]]:
    """Places of the answers that shared a batch, by schedule, size and measured time.

    No two batches share the measured time to the last bit, so it tells them apart.
    """
    batches: dict[tuple[str, int, float], list[int]] = {}
    for place, response in enumerate(responses):
        if response.kind == "answered":
            batches.setdefault((response.schedule, response.batch_size, response.inference_ms), []).append(
                place
            )
    return batches


def _client_row(run: LiveRun) -> ClientRow:
    record, answered = run.record, run.answered
    turned_away = np.array([response.kind in ("too_late", "overload") for response in record.responses])
    refused = Counter(str(response.kind) for response in compress(record.responses, turned_away))
    after = (record.seconds / (run.load.deadline - run.load.arrival))[turned_away]
    failed = Counter(response.detail for response in record.responses if response.kind == "failed")
    return ClientRow(
        round_trip_ms=dict(percentiles(1000 * record.seconds[answered])),
        lag_ms=dict(percentiles(1000 * record.lag[np.isfinite(record.lag)])),
        refused=dict(refused),
        failed=dict(failed),
        refused_after=dict(percentiles(after)),
    )


def _span(run: LiveRun) -> float:
    """Until the last answer, at least until the end of the arrivals."""
    ends = run.load.arrival + run.record.seconds
    return max(run.seconds, float(ends[np.isfinite(ends)].max(initial=0.0)))
