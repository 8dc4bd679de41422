"""Comparison of policies on one live machine: all loads in one run, policies interleaved, paired over seeds.

A server is started once per seed and policy, in an order that rotates with the seed, so that a machine that becomes
slower or busier during a sweep affects all of them. All policies of a seed meet the same images at the same times, and
share one measured profile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.common.errors import DataError
from fedstill.evaluation.serving.live_loadtest import LiveSettings, run_live
from fedstill.evaluation.serving.results import ServingResults
from fedstill.evaluation.serving.served_process import ServedProcess, ServerOptions
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import TaskImages
from fedstill.evaluation.serving.virtual import LoadTest, Progress, run_virtual

Contender = TypeVar("Contender")

FIXED = ("tome5", "tome10", "tome15", "tome20")
PLAIN_BATCH = 8
BEST = "tome"
"""Stands for the fixed merging policy that does best in virtual time with the measured profile."""


@dataclass(frozen=True)
class Sweep:
    """What to compare. test.policies: by name, BEST among them. test.loads: factors on test.rate, or on the plain
    model's capacity if that is None."""

    test: LoadTest
    settings: LiveSettings
    server: ServerOptions
    pictures: tuple[TaskImages, ...]
    measured_on: str
    command: str


def plain_capacity(profile: Profile) -> float:
    """Queries per second of the unchanged model, in batches of PLAIN_BATCH or the largest possible."""
    plain = profile.with_token_delta(0)
    size = min(PLAIN_BATCH, plain.maximum_batch)
    return size / plain.seconds(size)


def best_fixed(profile: Profile, test: LoadTest) -> str:
    """The fixed merging policy that earns most in virtual time at twice the rate.

    Raises DataError if the profile has no schedule for any.
    """
    deltas = {schedule.token_delta for schedule in profile.schedules}
    known = tuple(name for name in FIXED if -int(name.removeprefix("tome")) in deltas)
    if not known:
        raise DataError(f"profile {profile.name!r} has none of the schedules -5, -10, -15, -20")
    trial = replace(test, traces=("synthetic",), policies=known, loads=(2.0,), seeds=3, seconds=60.0)
    runs = run_virtual(trial, profile, None, "").runs
    return max(known, key=lambda name: sum(row.share for row in runs if row.policy == name))


def measured_profile(server: ServerOptions, policy: str) -> Profile:
    """Start a server once, so that its profile exists, and read the profile."""
    with ServedProcess(server, policy) as first:
        return first.profile()


def run_sweep(sweep: Sweep, progress: Progress = lambda _: None) -> ServingResults:
    """Everything, as one load test. Raises DataError for servers that do not come up."""
    progress("profile")
    profile = measured_profile(sweep.server, next(name for name in sweep.test.policies if name != BEST))
    test = replace(sweep.test, rate=sweep.test.rate or plain_capacity(profile))
    policies = [best_fixed(profile, test) if name == BEST else name for name in test.policies]
    if len(set(policies)) != len(policies):
        raise DataError(f"--policies names {', '.join(policies)}: something twice")
    parts: dict[str, list[ServingResults]] = {name: [] for name in policies}
    for seed in range(test.seeds):
        for policy in rotated(policies, seed):
            progress(f"seed {seed}: {policy}")
            with ServedProcess(sweep.server, policy) as server:
                parts[policy].append(asyncio.run(_one(sweep, test, server.target, profile, seed, progress)))
    return merged(
        [part for name in policies for part in parts[name]], replace(test, policies=tuple(policies)), sweep
    )


def rotated(contenders: Sequence[Contender], seed: int) -> list[Contender]:
    """The order of a seed: each contender comes first in its turn."""
    first = seed % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def merged(parts: Sequence[ServingResults], test: LoadTest, sweep: Sweep) -> ServingResults:
    """One load test merged from those of single servers: references once per load, and all schedules that any of them
    used."""
    references = {(row.trace, row.load, row.seed): row for part in parts for row in part.references}
    first = parts[0]
    return replace(
        first,
        command=sweep.command,
        config={**first.config, "policies": test.policies, "seeds": test.seeds, "rate": test.rate},
        schedules=tuple(dict.fromkeys(name for part in parts for name in part.schedules)),
        runs=tuple(row for part in parts for row in part.runs),
        references=tuple(references.values()),
        series=tuple(row for part in parts for row in part.series),
    )


async def _one(
    sweep: Sweep, test: LoadTest, target: str, profile: Profile, seed: int, progress: Callable[[str], None]
) -> ServingResults:
    async with GrpcTarget(ServingAddress(target)) as server:
        return await run_live(
            test,
            sweep.settings,
            server,
            sweep.pictures,
            seeds=(seed,),
            profile=profile,
            measured_on=sweep.measured_on,
            progress=progress,
        )
