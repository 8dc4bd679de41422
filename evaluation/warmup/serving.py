"""Warmed models under the loads of Figures 4.9 and 4.10, in virtual time and scaled to this machine.

The thesis' ViT-Base serves 379 queries per second unreduced (Table 3.4), its objective is 0.1 s, its loads move
between 1 and 700 queries per second and, on the real trace, between 100 and 300. Here every time is multiplied, and
every rate divided, by the slowness of this machine. Policies plan with accuracies from the profiling images; answers
are right at random with those of the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedstill.cloud_server.serving.policies.prodigy import warmed_profile
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.thesis_profile import THROUGHPUT
from fedstill.cloud_server.serving.scheduling.virtual_time import RIGHT, WRONG, Outcome, as_queries, simulate
from fedstill.datasets.loads.arrivals import Times, modulated
from fedstill.datasets.loads.query_mix import Load, QueryKind, draw_load
from fedstill.evaluation.serving.results import percentiles
from fedstill.evaluation.warmup.results import BatchTime, ServedRow, SystemRow

THESIS_OBJECTIVE = 0.1
UTILITY = 0.5
"""Utility of every query; above 0.8 Algorithm 3 abandons its rule by rate for the largest schedule."""
SYNTHETIC_RATES = (1.0, 700.0)
AZURE_RATES = (100.0, 300.0)
TWICE = "synthetic, twice the rates"
"""Not in the thesis: a load at which the model without warm-up must reduce so far that it fails."""
LARGEST_BATCH = 32
POLICIES = ("clipper", "vanilla", "maxprune", "prodigy", "fedstill")
LEVEL_SECONDS = 20
CURVE_STEPS = 20
"""Of the latency curve, a tenth of the objective each."""


def time_scale(times: Mapping[int, BatchTime]) -> float:
    """How many times slower than the thesis' GPU this machine is, unreduced and in full batches."""
    plain = times[0]
    return THROUGHPUT[0] * (plain.fixed_seconds / LARGEST_BATCH + plain.per_query_seconds)


def profiles(
    task: str, systems: Sequence[SystemRow], times: Mapping[int, BatchTime]
) -> tuple[Profile, Profile]:
    """The policies' profiles and the true ones: vanilla, Maxprune's model, and the models of Prodigy with soups."""
    by_name = {row.system: row for row in systems}

    def of(share: Callable[[SystemRow, int], float]) -> Profile:
        plain = {
            reduction: Schedule(
                f"-{reduction}" if reduction else "0",
                -reduction,
                time.fixed_seconds,
                time.per_query_seconds,
                (share(by_name["vanilla"], reduction),),
                LARGEST_BATCH,
            )
            for reduction, time in times.items()
        }
        warmed: dict[str, dict[int, float]] = {}
        for row in (by_name["maxprune"], by_name["soup"]):
            for reduction, recipe in row.recipes.items():
                warmed.setdefault(recipe, {})[int(reduction)] = share(row, int(reduction))
        return warmed_profile(task, "warmup-study", task, plain, warmed)

    return of(lambda row, reduction: row.profiled[str(reduction)]), of(SystemRow.accuracy)


def loads(seconds: float, scale: float, azure: Times | None, seed: int) -> dict[str, Times]:
    """Arrivals by trace: rates that vary within the thesis' bounds, and the shape of a real trace within its own
    bounds."""
    found = {}
    steps = int(np.ceil(seconds))
    generator = np.random.default_rng([seed, 11])
    # "Fluctuates between 1 and 700": a new level every 20 s, so that queues can build up and drain.
    levels = np.repeat(generator.uniform(*SYNTHETIC_RATES, steps // LEVEL_SECONDS + 1), LEVEL_SECONDS)[:steps]
    found["synthetic"] = modulated(levels / scale, seconds, generator)
    found[TWICE] = modulated(2 * levels / scale, seconds, np.random.default_rng([seed, 14]))
    if azure is not None:
        per_second = np.bincount(azure.astype(np.int64)).astype(np.float64)
        start = int(generator.integers(len(per_second)))
        shape = per_second[(start + np.arange(steps)) % len(per_second)]
        low, high = AZURE_RATES
        shape = np.clip(shape / max(1.0, float(np.quantile(shape, 0.99))), 0.0, 1.0)
        found["azure"] = modulated((low + (high - low) * shape) / scale, seconds, generator)
    return found


def serve(
    task: str,
    systems: Sequence[SystemRow],
    times: Mapping[int, BatchTime],
    seconds: float,
    azure: Times | None,
    seed: int,
    on_progress: Callable[[str], None],
) -> tuple[ServedRow, ...]:
    """Every policy on the same arrivals and the same random outcomes."""
    believed, true = profiles(task, systems, times)
    scale = time_scale(times)
    objective = THESIS_OBJECTIVE * scale
    rows = []
    for trace, arrivals in loads(seconds, scale, azure, seed).items():
        kinds = (QueryKind(task, objective, UTILITY),)
        load = draw_load(arrivals, (task,), np.random.default_rng([seed, 12]), kinds)
        queries = as_queries(load)
        for name in POLICIES:
            on_progress(f"{task}: {name} on {trace}")
            policy: Policy = make_policy(name, believed)
            outcome = simulate(policy, load, queries, true, np.random.default_rng([seed, 13]))
            rows.append(_row(name, trace, load, outcome, seconds, objective))
    return tuple(rows)


def _row(name: str, trace: str, load: Load, outcome: Outcome, seconds: float, objective: float) -> ServedRow:
    answered = outcome.schedule >= 0
    batch_seconds = np.zeros(len(load))
    order = np.searchsorted(outcome.batch_start, load.arrival + outcome.waiting - 1e-9)
    batch_seconds[answered] = outcome.batch_seconds[order[answered]]
    latency = (outcome.waiting + batch_seconds)[answered]
    steps = objective * np.arange(1, CURVE_STEPS + 1) / 10
    in_time = (outcome.kind == RIGHT) | (outcome.kind == WRONG)
    return ServedRow(
        policy=name,
        trace=trace,
        queries=len(load),
        goodput=float((outcome.kind == RIGHT).sum()) * 60 / seconds,
        in_time=float(in_time.mean()),
        latency_ms=dict(percentiles(1000 * latency)),
        within=tuple(float((latency <= step + 1e-9).sum() / len(load)) for step in steps),
    )
