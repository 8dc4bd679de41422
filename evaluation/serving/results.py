"""The results of a load test: ``results.json``, one record per run, and the loads' upper references.

The command writes it through these records; plots, tables and ``fedstill reproduce`` read it back through them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import from_plain, plain_value, to_plain
from fedstill.evaluation.results import RESULTS_FILE, ResultsError

FORMAT = 1
KIND = "loadtest"
PERCENTILES = (5, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class ClientRow:
    """The client's further observations of a live server.

    round_trip_ms: percentiles from the planned time to the answer, of answered queries. lag_ms: percentiles of how late
    queries were sent. refused: queries refused by reason (`too_late`, `overload`). failed: queries that got no answer
    otherwise, by what went wrong (those that the generator could not send among them). refused_after: percentiles of
    the time until a refusal, as a share of the query's latency objective.
    """

    round_trip_ms: dict[str, float]
    lag_ms: dict[str, float]
    refused: dict[str, int]
    failed: dict[str, int]
    refused_after: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRow:
    """One policy on one load.

    type1 .. type4: queries right in time, wrong in time, late, not served (of which `rejected` on arrival).
    accuracy: share of right answers among the served. batch_sizes: how many batches of size 1, 2, ... .
    schedules: queries served per schedule. batch_accuracy: how many batches per twentieth of right answers.
    waiting_ms, inference_ms: percentiles by name ("p50"), of served queries and of batches. busy: share of
    the time that the engine ran. loading_seconds: spent on loading models. earned_per_window: utility by
    arrival, in windows of `window_seconds`. client: of a live server only; there, `rejected` are the queries that
    were refused for overload, since a client cannot tell whether "too late" was decided on arrival.
    """

    policy: str
    trace: str
    load: float
    seed: int
    queries: int
    utility_offered: float
    utility_earned: float
    type1: int
    type2: int
    type3: int
    type4: int
    rejected: int
    accuracy: float
    batch_sizes: tuple[int, ...]
    schedules: dict[str, int]
    batch_accuracy: tuple[int, ...]
    waiting_ms: dict[str, float]
    inference_ms: dict[str, float]
    busy: float
    loading_seconds: float
    window_seconds: float
    earned_per_window: tuple[float, ...]
    client: ClientRow | None = None

    def __post_init__(self) -> None:
        if self.type1 + self.type2 + self.type3 + self.type4 != self.queries:
            raise ValueError(
                f"type1: the types of {self.policy} on {self.trace} do not add up to {self.queries}"
            )

    @property
    def share(self) -> float:
        """Utility earned over utility offered."""
        return self.utility_earned / self.utility_offered

    @property
    def batches(self) -> int:
        return sum(self.batch_sizes)

    @property
    def mean_batch(self) -> float:
        return sum(size * count for size, count in enumerate(self.batch_sizes, start=1)) / max(
            1, self.batches
        )


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """Upper references of one load, as utility: fluid in windows of one second, and the strict bound."""

    trace: str
    load: float
    seed: int
    utility_offered: float
    window: float
    bound: float


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """The first seconds of one run, one value per second: arrivals, queries served in time, and the mean token delta of
    the queries that began to be served (None in a second without any)."""

    policy: str
    trace: str
    load: float
    seed: int
    incoming: tuple[int, ...]
    served: tuple[int, ...]
    token_delta: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ServingResults:
    """A whole load test. command: what was typed, and config, resolved. profile: name and source of the
    numbers used. references: none if a live server's profile was not given. measured_on: the machine of a live
    test; None in virtual time."""

    command: str
    profile: str
    profile_source: str
    config: dict[str, Any]
    schedules: tuple[str, ...]
    runs: tuple[RunRow, ...]
    references: tuple[ReferenceRow, ...]
    series: tuple[SeriesRow, ...]
    measured_on: str | None = None

    def places(self) -> list[tuple[str, float]]:
        """(trace, load) in the order in which they were run."""
        return list(dict.fromkeys((row.trace, row.load) for row in self.runs))

    def policies(self) -> list[str]:
        return list(dict.fromkeys(row.policy for row in self.runs))

    def rows(self, policy: str, trace: str, load: float) -> list[RunRow]:
        """By seed."""
        found = [r for r in self.runs if (r.policy, r.trace, r.load) == (policy, trace, load)]
        return sorted(found, key=lambda row: row.seed)

    def reference(self, trace: str, load: float) -> list[ReferenceRow]:
        """By seed."""
        return sorted(
            (r for r in self.references if (r.trace, r.load) == (trace, load)), key=lambda r: r.seed
        )


def write_serving_results(results: ServingResults, folder: Path) -> Path:
    """Write results.json; what is written can be read back."""
    plain = {"format": FORMAT, "kind": KIND, **to_plain(results)}
    return replace_text(folder / RESULTS_FILE, json.dumps(plain, default=plain_value, indent=1) + "\n")


def read_serving_results(folder: Path) -> ServingResults:
    """The results of a load test. Raises ResultsError, one line, if `folder` holds none."""
    path = folder / RESULTS_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: not readable ({error}); run fedstill loadtest first") from None
    if not isinstance(plain, dict) or plain.pop("kind", None) != KIND:
        raise ResultsError(f"{folder}: not the results of a load test; make some with fedstill loadtest")
    if plain.pop("format", None) != FORMAT:
        raise ResultsError(f"{path}: not format {FORMAT}; run fedstill loadtest again")
    try:
        return from_plain(ServingResults, plain)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from None


def percentiles(values: npt.NDArray[np.float64]) -> Mapping[str, float]:
    """Percentiles by name, of an array in any unit; empty if there are no values."""
    if not len(values):
        return {}
    found = np.percentile(values, PERCENTILES)
    return {f"p{place}": float(value) for place, value in zip(PERCENTILES, found, strict=True)}
