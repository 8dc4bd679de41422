"""Runs loads against a live server and turns its client's observations into records (``loadtest live``).

The loads, the mix of queries and the results are those of virtual time. Three things differ: images travel, an answer
is right if it names the true class, and time is the client's clock. With the same seed, two servers get the same
queries with the same images at the same times.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from fedstill.cloud_server.serving.policies.registry import POLICIES
from fedstill.cloud_server.serving.scheduling.fluid_reference import upper_bound, window_reference
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import DataError
from fedstill.datasets.loads.query_mix import Load
from fedstill.evaluation.serving.live_rows import LiveRun, run_row, series_row
from fedstill.evaluation.serving.open_loop import GRACE_SECONDS, Record, Response, play
from fedstill.evaluation.serving.results import ReferenceRow, RunRow, SeriesRow, ServingResults
from fedstill.evaluation.serving.task_images import TaskImages
from fedstill.evaluation.serving.virtual import LoadTest, Progress, draw, label_of, recorded_trace

LOG = logging.getLogger(__name__)
LAG_LIMIT_MS = 20.0
"""A generator that sends its p99 query later than this is itself overloaded; results say so."""


@dataclass(frozen=True, slots=True)
class Description:
    """A server's description: the policy that it runs, and the tasks that it serves with their class names."""

    policy: str
    tasks: Mapping[str, tuple[str, ...]]


class Target(Protocol):
    """A server, as a load generator sees it. Implemented by ``target.GrpcTarget``."""

    async def describe(self) -> Description:
        """Ask for its description. Raises DataError, one line, for a server that cannot be used."""

    async def query(self, task: str, picture: bytes, latency_ms: float, utility: float) -> Response:
        """Send one image. Does not raise: a failure is a response, too."""


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How queries are sent to a live server. latency_scale: factor on the latency objectives of Table 3.5. outstanding:
    most queries that may wait at once. allowance_ms: subtracted from the time limit sent to the server, for the network
    both ways.
    """

    latency_scale: float = 1.0
    outstanding: int = 20_000
    allowance_ms: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.latency_scale <= 1000:
            raise DataError("--latency-scale must lie above 0 and not above 1000")
        if self.outstanding < 1:
            raise DataError("--outstanding must be at least 1")
        if not 0 <= self.allowance_ms <= 10_000:
            raise DataError("--allowance-ms must lie between 0 and 10000")


async def run_live(
    test: LoadTest,
    settings: LiveSettings,
    target: Target,
    pictures: Sequence[TaskImages],
    *,
    seeds: Sequence[int] | None = None,
    data_dir: Path | None = None,
    profile: Profile | None = None,
    measured_on: str = "",
    command: str = "",
    progress: Progress = lambda _: None,
    grace: float = GRACE_SECONDS,
) -> ServingResults:
    """Run every trace, load and seed, one after the other. test.policies is ignored: the server reports its policy.

    pictures: of the tasks to ask for, in the order in which the mix of queries takes them. seeds: instead of the first
    test.seeds. profile: the server's, for upper references. measured_on: the machine. grace: of `play`. Raises
    DataError for a server without these tasks, and as `draw`.
    """
    about = await target.describe()
    _check(about, pictures, profile)
    test = replace(test, policies=(about.policy,))
    deltas = {} if profile is None else {s.name: s.token_delta for s in profile.everything}
    runs: list[RunRow] = []
    references: list[ReferenceRow] = []
    series: list[SeriesRow] = []
    for trace in test.traces:
        recorded = recorded_trace(trace, test, data_dir)
        for factor in test.loads:
            for seed in range(test.seeds) if seeds is None else seeds:
                place = label_of(trace), factor, seed
                load = live_load(
                    draw(trace, test, factor, seed, [p.task for p in pictures], recorded), settings
                )
                progress(f"{about.policy}: {place[0]} load {factor:g} seed {seed}, {len(load)} queries")
                if profile is not None:
                    references.append(_reference(*place, load, pictures, profile))
                labels, record = await ask(target, load, pictures, settings, grace)
                run = LiveRun(about.policy, *place, load, labels, record, test.seconds)
                runs.append(run_row(run))
                _warn(runs[-1])
                if seed == 0:
                    series.append(series_row(run, deltas))
    return ServingResults(
        command=command,
        profile="live" if profile is None else profile.name,
        profile_source="a live server" if profile is None else profile.source,
        config={**to_plain(test), **to_plain(settings)},
        schedules=_schedules(runs, profile),
        runs=tuple(runs),
        references=tuple(references),
        series=tuple(series),
        measured_on=measured_on,
    )


def live_load(load: Load, settings: LiveSettings) -> Load:
    """The load with its latency objectives scaled."""
    return replace(load, deadline=load.arrival + settings.latency_scale * (load.deadline - load.arrival))


async def ask(
    target: Target, load: Load, pictures: Sequence[TaskImages], settings: LiveSettings, grace: float
) -> tuple[list[str], Record]:
    """Send a load to a server; returns the true class names and the responses.

    A query's random number, which decides right or wrong in virtual time, chooses its image.
    """
    tasks, utilities = load.task.tolist(), load.utility.tolist()
    chosen = [pictures[task].place(draw) for task, draw in zip(tasks, load.draw.tolist(), strict=True)]

    async def send(place: int, left: float) -> Response:
        sent = pictures[tasks[place]]
        told = max(0.0, 1000 * left - settings.allowance_ms)
        return await target.query(sent.task, sent.pictures[chosen[place]], told, utilities[place])

    record = await play(load.arrival, load.deadline, send, outstanding=settings.outstanding, grace=grace)
    return [pictures[task].labels[place] for task, place in zip(tasks, chosen, strict=True)], record


def _check(about: Description, pictures: Sequence[TaskImages], profile: Profile | None) -> None:
    if about.policy not in POLICIES:
        raise DataError(f"the server runs policy {about.policy!r}, which this fedstill does not know")
    for sent in pictures:
        if sent.task not in about.tasks:
            known = ", ".join(sorted(about.tasks)) or "none"
            raise DataError(
                f"the server has no task {sent.task!r} (it has {known}): choose others with --tasks"
            )
        strange = sorted(set(sent.labels) - set(about.tasks[sent.task]))
        if strange:
            raise DataError(
                f"task {sent.task}: the server knows no class {strange[0]!r}; are these its images?"
            )
        if profile is not None:
            profile.task_index(sent.task)


def _reference(
    trace: str, factor: float, seed: int, load: Load, pictures: Sequence[TaskImages], profile: Profile
) -> ReferenceRow:
    order = np.array([profile.task_index(sent.task) for sent in pictures])
    known = replace(load, task=order[load.task])
    offered = float(load.utility.sum())
    return ReferenceRow(
        trace, factor, seed, offered, window_reference(known, profile), upper_bound(known, profile)
    )


def _schedules(runs: Sequence[RunRow], profile: Profile | None) -> tuple[str, ...]:
    seen = {name for row in runs for name in row.schedules}
    known = [] if profile is None else [schedule.name for schedule in profile.everything]
    return (*known, *sorted(seen - set(known)))


def _warn(row: RunRow) -> None:
    """Warn of anything that makes a row doubtful."""
    client = row.client
    if client is None:
        return
    lag = client.lag_ms.get("p99", 0.0)
    if lag > LAG_LIMIT_MS:
        LOG.warning(
            "generator late trace=%s load=%g seed=%d lag_p99_ms=%.0f", row.trace, row.load, row.seed, lag
        )
    for detail, count in client.failed.items():
        LOG.warning("queries failed trace=%s load=%g count=%d detail=%s", row.trace, row.load, count, detail)
