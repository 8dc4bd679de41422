"""Comparison of policies on one live machine: all loads in one run, policies interleaved, paired over seeds.

A server is started once per seed and policy, in an order that rotates with the seed, so that a machine that becomes
slower or busier during a sweep affects all of them. All policies of a seed meet the same images at the same times, and
share one measured profile. What one server has done is kept, so that a sweep that was interrupted goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import DataError
from fedstill.common.provenance import git_revision
from fedstill.evaluation.results import RESULTS_FILE
from fedstill.evaluation.serving.closed_loop import PLAIN, plain_rate
from fedstill.evaluation.serving.live_loadtest import LiveSettings, run_live
from fedstill.evaluation.serving.results import ServingResults, read_serving_results, write_serving_results
from fedstill.evaluation.serving.served_process import ServedProcess, ServerOptions
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import TaskImages
from fedstill.evaluation.serving.virtual import LoadTest, Progress, run_virtual

Contender = TypeVar("Contender")

FIXED = ("tome5", "tome10", "tome15", "tome20")
BEGUN = "begun.json"
BEST = "tome"
"""Stands for the fixed merging policy that does best in virtual time with the measured profile."""


@dataclass(frozen=True)
class Sweep:
    """What to compare. test.policies: by name, BEST among them. test.loads: factors on test.rate, or on what the plain
    model serves per second if that is None. kept: folder of what is done, for a sweep that goes on; None keeps
    nothing."""

    test: LoadTest
    settings: LiveSettings
    server: ServerOptions
    pictures: tuple[TaskImages, ...]
    measured_on: str
    command: str
    kept: Path | None = None


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


def measured(
    server: ServerOptions, pictures: Sequence[TaskImages], rate: float | None
) -> tuple[Profile, float]:
    """Start a server once, so that its profile exists; with ``rate``, or what it serves per second unchanged."""
    with ServedProcess(server, PLAIN) as first:
        return first.profile(), rate or plain_rate(first, pictures)


def run_sweep(sweep: Sweep, progress: Progress = lambda _: None) -> ServingResults:
    """Everything, as one load test.

    Raises DataError for servers that do not come up, and for a folder of what is done under other settings.
    """
    progress("profile")
    profile, rate = measured(sweep.server, sweep.pictures, _begun(sweep) or sweep.test.rate)
    test = replace(sweep.test, rate=rate)
    if sweep.kept is not None:
        replace_text(sweep.kept / BEGUN, json.dumps({**_settings(sweep), "rate": rate}) + "\n")
    policies = [best_fixed(profile, test) if name == BEST else name for name in test.policies]
    if len(set(policies)) != len(policies):
        raise DataError(f"--policies names {', '.join(policies)}: something twice")
    parts: dict[str, list[ServingResults]] = {name: [] for name in policies}
    for seed in range(test.seeds):
        for policy in rotated(policies, seed):
            place = None if sweep.kept is None else sweep.kept / f"seed-{seed}-{policy}"
            if place is not None and (place / RESULTS_FILE).exists():
                parts[policy].append(read_serving_results(place))
                continue
            progress(f"seed {seed}: {policy}")
            with ServedProcess(sweep.server, policy) as server:
                done = asyncio.run(_one(sweep, test, server.target, profile, seed, progress))
            if place is not None:
                write_serving_results(done, place)
            parts[policy].append(done)
    return merged(
        [part for name in policies for part in parts[name]], replace(test, policies=tuple(policies)), sweep
    )


def _settings(sweep: Sweep) -> dict[str, object]:
    """What must be the same for results to be of one sweep: more seeds and policies may be asked for."""
    plain = {**to_plain(sweep.test), **to_plain(sweep.settings)}
    same = {name: value for name, value in plain.items() if name not in ("policies", "seeds", "rate")}
    known: dict[str, object] = json.loads(json.dumps({**same, "asked_rate": sweep.test.rate}))
    return {
        **known,
        "server": [str(sweep.server.state), *sweep.server.arguments],
        "machine": sweep.measured_on,
        "revision": git_revision(),
        "pictures": [len(sent.pictures) for sent in sweep.pictures],
    }


def _begun(sweep: Sweep) -> float | None:
    """The rate of a sweep that goes on; None for a new one."""
    if sweep.kept is None or not (sweep.kept / BEGUN).exists():
        return None
    begun: dict[str, object] = json.loads((sweep.kept / BEGUN).read_text(encoding="utf-8"))
    rate = begun.pop("rate", None)
    if begun != _settings(sweep) or not isinstance(rate, float | int):
        raise DataError(f"{sweep.kept}: holds a sweep with other settings: remove it, or name another folder")
    return float(rate)


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
