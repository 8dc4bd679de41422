"""Runs policies against loads in virtual time and turns the outcomes into records (``fedstill loadtest virtual``).

A load is drawn once per trace, rate and seed, and all policies meet that one load, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.fluid_reference import upper_bound, window_reference
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.virtual_time import (
    EVICTED,
    LATE,
    RIGHT,
    WRONG,
    Outcome,
    VirtualEngine,
    as_queries,
    simulate,
)
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import DataError
from fedstill.datasets.loads import arrivals
from fedstill.datasets.loads.arrivals import THESIS_RATES, Times, replay
from fedstill.datasets.loads.query_mix import Load, draw_load
from fedstill.datasets.loads.trace_files import read_trace
from fedstill.evaluation.serving.results import (
    ReferenceRow,
    RunRow,
    SeriesRow,
    ServingResults,
    percentiles,
)

SYNTHETIC, AZURE = "synthetic", "azure"
DRAWN = (SYNTHETIC, "poisson", "gamma", "mmpp", "step")
"""The generated loads: section 3.6's (a new rate every second), a constant rate, gaps that vary twice as much,
two rates that take turns, and ten times the rate in the middle third."""
AZURE_FILE = Path("traces") / "azure_llm_2023_code.csv"
THESIS_RATE = sum(THESIS_RATES) / 2
WINDOWS = 60  # of the cumulative utility
SERIES_SECONDS = 200  # Fig. 3.9a shows as many
TWENTIETHS = 20

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadTest:
    """What to run. traces: those of DRAWN, azure, or a CSV file. loads: factors on the standard rate. seconds: of
    arrivals. rate: mean queries per second at load 1 (None: as in the thesis, a file as recorded; step: of its calm).
    compress: a file is replayed so many times as fast (the thesis replays two minutes of MAF per second: 120). jitter:
    of the engine. equal: every query is worth 1, instead of as in the mix."""

    traces: tuple[str, ...]
    policies: tuple[str, ...]
    loads: tuple[float, ...] = (1.0,)
    seeds: int = 5
    seconds: float = 1800.0
    rate: float | None = None
    compress: float = 1.0
    jitter: float = 0.0
    equal: bool = False

    def __post_init__(self) -> None:
        for name, values in (("--trace", self.traces), ("--policies", self.policies), ("--load", self.loads)):
            if not values or len(set(values)) != len(values):
                raise DataError(f"{name} names nothing, or something twice")
        if not all(0 < load <= 100 for load in self.loads):
            raise DataError("--load must lie above 0 and not above 100")
        if not 1 <= self.seconds <= 86_400:
            raise DataError("--seconds must lie between 1 and 86400")
        if not 0 <= self.jitter <= 1:
            raise DataError("--jitter must lie between 0 and 1")
        if self.rate is not None and not 0 < self.rate <= 100_000:
            raise DataError("--rate must lie above 0 and not above 100000")
        if not 0 < self.compress <= 1e6:
            raise DataError("--compress must lie above 0 and not above 1000000")

    @property
    def loads_in_all(self) -> int:
        """How many loads are drawn: each trace at each factor with each seed."""
        return len(self.traces) * len(self.loads) * self.seeds


def run_virtual(
    test: LoadTest,
    profile: Profile,
    data_dir: Path | None,
    command: str,
    progress: Progress = lambda _: None,
) -> ServingResults:
    """Run everything. data_dir: the folder of the shipped traces. command: the command line, to be kept with the
    results. progress: called before each run starts.

    Raises DataError for traces that cannot be read and policies that the profile cannot serve.
    """
    for name in test.policies:
        make_policy(name, profile)
    recorded = {trace: recorded_trace(trace, test, data_dir) for trace in test.traces}
    runs, references, series = [], [], []
    for trace in test.traces:
        label = label_of(trace)
        for factor in test.loads:
            for seed in range(test.seeds):
                load = draw(trace, test, factor, seed, profile.tasks, recorded[trace])
                queries = as_queries(load)
                progress(f"{label} load {factor:g} seed {seed}: upper references")
                offered = float(load.utility.sum())
                references.append(
                    ReferenceRow(
                        label,
                        factor,
                        seed,
                        offered,
                        window_reference(load, profile),
                        upper_bound(load, profile),
                    )
                )
                for name in test.policies:
                    progress(f"{label} load {factor:g} seed {seed}: {name}")
                    # One generator state for every policy: batch by batch, the engine's rng is the same.
                    rng = np.random.default_rng([seed, 3])
                    outcome = simulate(
                        make_policy(name, profile),
                        load,
                        queries,
                        profile,
                        rng,
                        VirtualEngine(jitter=test.jitter),
                    )
                    runs.append(_row(name, label, factor, seed, load, outcome, profile, test.seconds))
                    if seed == 0:
                        series.append(
                            _series(name, label, factor, seed, load, outcome, profile, test.seconds)
                        )
    return ServingResults(
        command=command,
        profile=profile.name,
        profile_source=profile.source,
        config=to_plain(test),
        schedules=tuple(schedule.name for schedule in profile.everything),
        runs=tuple(runs),
        references=tuple(references),
        series=tuple(series),
    )


def label_of(trace: str) -> str:
    """How results name a trace."""
    return trace if trace in (*DRAWN, AZURE) else Path(trace).stem


def recorded_trace(trace: str, test: LoadTest, data_dir: Path | None) -> tuple[Times, float] | None:
    """A recorded trace, and the factor by which it is made denser at load 1; None for a generated load.

    Raises DataError for a trace that cannot be read.
    """
    if trace in DRAWN:
        return None
    if trace == AZURE:
        if data_dir is None or not (data_dir / AZURE_FILE).is_file():
            raise DataError(
                f"--trace azure needs {AZURE_FILE} below the folder FEDSTILL_DATA: set it, or name a CSV file"
            )
        path = data_dir / AZURE_FILE
    else:
        path = Path(trace)
        if not path.is_file():
            raise DataError(
                f"unknown trace {trace!r}: give {', '.join(DRAWN)}, azure or a CSV file of arrivals"
            )
    times = read_trace(path) / (1.0 if trace == AZURE else test.compress)
    if test.rate is not None:
        return times, test.rate * (int(times[-1]) + 1) / len(times)
    return times, arrivals.thesis_bursty_factor(times) if trace == AZURE else 1.0


def draw(
    trace: str,
    test: LoadTest,
    factor: float,
    seed: int,
    tasks: Sequence[str],
    recorded: tuple[Times, float] | None,
) -> Load:
    """The load of one seed. recorded: of `recorded_trace`. Raises DataError for a load without queries."""
    generator = np.random.default_rng([seed, 1])
    if recorded is not None:
        times = replay(recorded[0], test.seconds, generator, factor=recorded[1], load=factor)
    else:
        times = _drawn_times(trace, test.seconds, factor * (test.rate or THESIS_RATE), generator)
    if not len(times):
        raise DataError("the load holds no queries: raise --seconds, --load or --rate")
    load = draw_load(times, tasks, np.random.default_rng([seed, 2]))
    return replace(load, utility=np.ones(len(load))) if test.equal else load


def _drawn_times(trace: str, seconds: float, rate: float, generator: np.random.Generator) -> Times:
    if trace == "poisson":
        return arrivals.poisson(rate, seconds, generator)
    if trace == "gamma":
        return arrivals.gamma(rate, 2.0, seconds, generator)
    if trace == "mmpp":
        return arrivals.markov_modulated((rate / 2, 2 * rate), (10.0, 5.0), seconds, generator)
    if trace == "step":
        return arrivals.step(rate, 10.0, seconds / 3, 2 * seconds / 3, seconds, generator)
    return arrivals.thesis_synthetic(seconds, generator, rate / THESIS_RATE)


def _row(
    policy: str,
    trace: str,
    factor: float,
    seed: int,
    load: Load,
    outcome: Outcome,
    profile: Profile,
    seconds: float,
) -> RunRow:
    served = outcome.schedule >= 0
    right = float((outcome.batch_accuracy * outcome.batch_size).sum())
    per_schedule = np.bincount(outcome.schedule[served], minlength=len(profile.everything))
    window = seconds / WINDOWS
    earned = np.bincount(
        np.minimum(WINDOWS - 1, (load.arrival / window).astype(np.int64)),
        weights=np.where(outcome.kind == RIGHT, load.utility, 0.0),
        minlength=WINDOWS,
    )
    kinds = np.bincount(outcome.kind, minlength=EVICTED + 1)
    twentieth = np.minimum(TWENTIETHS - 1, (outcome.batch_accuracy * TWENTIETHS).astype(np.int64))
    end = float((outcome.batch_start + outcome.batch_seconds).max()) if len(outcome.batch_start) else seconds
    return RunRow(
        policy=policy,
        trace=trace,
        load=factor,
        seed=seed,
        queries=len(load),
        utility_offered=float(load.utility.sum()),
        utility_earned=outcome.utility_earned(load),
        type1=int(kinds[RIGHT]),
        type2=int(kinds[WRONG]),
        type3=int(kinds[LATE]),
        type4=int(kinds[EVICTED]),
        rejected=int(outcome.rejected.sum()),
        accuracy=right / max(1, int(served.sum())),
        batch_sizes=tuple(np.bincount(outcome.batch_size)[1:].tolist()),
        schedules={
            schedule.name: int(count)
            for schedule, count in zip(profile.everything, per_schedule.tolist(), strict=True)
            if count
        },
        batch_accuracy=tuple(np.bincount(twentieth, minlength=TWENTIETHS).tolist()),
        waiting_ms=dict(percentiles(1000 * outcome.waiting[served])),
        inference_ms=dict(percentiles(1000 * outcome.batch_seconds)),
        busy=float(outcome.batch_seconds.sum()) / max(end, seconds),
        loading_seconds=outcome.loading_seconds,
        window_seconds=window,
        earned_per_window=tuple(earned.tolist()),
    )


def _series(
    policy: str,
    trace: str,
    factor: float,
    seed: int,
    load: Load,
    outcome: Outcome,
    profile: Profile,
    seconds: float,
) -> SeriesRow:
    length = min(SERIES_SECONDS, int(seconds))
    deltas = np.array([schedule.token_delta for schedule in profile.everything], dtype=np.float64)
    in_time = (outcome.kind == RIGHT) | (outcome.kind == WRONG)
    started = np.where(outcome.schedule >= 0, load.arrival + outcome.waiting, 0.0).astype(np.int64)
    served = np.bincount(started[in_time], minlength=length)[:length]
    weights = np.bincount(started[in_time], weights=deltas[outcome.schedule[in_time]], minlength=length)[
        :length
    ]
    return SeriesRow(
        policy=policy,
        trace=trace,
        load=factor,
        seed=seed,
        incoming=tuple(np.bincount(load.arrival.astype(np.int64), minlength=length)[:length].tolist()),
        served=tuple(served.tolist()),
        token_delta=tuple(
            weight / count if count else None
            for weight, count in zip(weights.tolist(), served.tolist(), strict=True)
        ),
    )
