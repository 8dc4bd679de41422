"""How long the fedstill policy takes to decide with 64 batches waiting, beside the parts of that decision.

The queue is filled with Table 3.5's mix within its deadlines, as after a burst that no engine could have
served. The grid plan is also timed alone, and compared with the exact plan on the same batches if that is small enough.
Times are CPU times of this one thread, which other load on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from rich.console import Console

from fedstill.cloud_server.serving.policies.exact_plan import exact_plan, grid_plan
from fedstill.cloud_server.serving.policies.fedstill import FedstillPolicy
from fedstill.cloud_server.serving.policies.otas import OtasPolicy
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile
from fedstill.cloud_server.serving.scheduling.virtual_time import as_queries
from fedstill.datasets.loads.query_mix import draw_load

BATCHES, BATCH = 64, 64


def main(arguments: Sequence[str]) -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test in seconds")
    repeats = 3 if parser.parse_args(arguments).quick else 30
    console = Console(soft_wrap=True, highlight=False)
    ours = [decision_seconds(lambda: FedstillPolicy(thesis_profile()), seed) for seed in range(repeats)]
    thesis = [decision_seconds(lambda: OtasPolicy(thesis_profile()), seed) for seed in range(repeats)]
    console.print(
        f"{BATCHES * BATCH} queries waiting, medians of {repeats}: fedstill decides in {1000 * median(ours):.2f} ms, "
        f"OTAS in {1000 * median(thesis):.2f} ms, ratio {median(thesis) / median(ours):.1f}"
    )
    for count in (4, 16, 64):
        plans = [plan_seconds(count, seed) for seed in range(repeats)]
        console.print(f"grid plan of {count} batches: {1000 * median(plans):.2f} ms")
    shares = [plan_share(6, seed) for seed in range(repeats)]
    console.print(f"grid plan of 6 batches: {min(shares):.4f} of the exact plan's value at worst")


def decision_seconds(make: Callable[[], Policy], seed: int) -> float:
    """Fill a policy's queue with 64 x 64 queries of the last half second, then time one `dispatch`."""
    policy, generator = make(), np.random.default_rng(seed)
    arrival = np.sort(generator.uniform(0.0, 0.3, BATCHES * BATCH))
    for query in as_queries(draw_load(arrival, policy.profile.tasks, generator)):
        policy.arrive(query, query.arrival)
    started = time.process_time()
    policy.dispatch(0.3)
    return time.process_time() - started


def plan_seconds(count: int, seed: int) -> float:
    """Time one grid plan."""
    problem = _problem(count, seed)
    started = time.process_time()
    grid_plan(*problem, float(problem[2][-1]) / 400)
    return time.process_time() - started


def plan_share(count: int, seed: int) -> float:
    """Value of the grid plan over that of the exact plan."""
    problem = _problem(count, seed)
    return grid_plan(*problem, float(problem[2][-1]) / 400).value / exact_plan(*problem).value


def _problem(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    schedules = thesis_profile().useful
    sizes = generator.integers(1, BATCH + 1, count)
    seconds = np.array([[schedule.seconds(int(size)) for schedule in schedules] for size in sizes])
    accuracy = np.array([np.mean(schedule.accuracy) for schedule in schedules])
    values = (sizes * generator.choice([0.01, 0.2, 0.3, 1.0], count))[:, None] * accuracy
    return seconds, values, np.sort(generator.uniform(0.05, 1.0, count))


if __name__ == "__main__":
    main(sys.argv[1:])
