"""Two trunks in one process on two cores, beside two processes with a core and a trunk each: expected utility.

ViT-Tiny (real weights) and ViT-Small (random ones) get the same queries at the same times in both ways. Accuracies are
given, not measured: random weights have none. The one process has an engine with a thread on each core with
``--engines``, else one engine with two threads. What is earned is the utility of the answers in time, by the client's
clock, times the given accuracy of their token schedule. Times are measured here, with as many threads as they are used
with. The load generator shares the two cores with the servers, in both ways alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import timm
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.environment import serving_environment
from fedstill.cloud_server.serving.engine.profiler import measure_times, token_delta
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.scheduling.profile import (
    Profile,
    Schedule,
    profile_to_plain,
    read_profile,
)
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.common.atomic_files import replace_text
from fedstill.common.option_values import whole_numbers
from fedstill.common.paths import VIT_WEIGHTS, data_path
from fedstill.common.provenance import cpu_model, hardware
from fedstill.datasets.loads.arrivals import poisson
from fedstill.datasets.loads.query_mix import Load, QueryKind, draw_load
from fedstill.evaluation.serving.open_loop import GRACE_SECONDS, Response, play
from fedstill.evaluation.serving.served_process import ServedProcess, ServerOptions
from fedstill.evaluation.serving.summary import mean_ratio
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import drawn_images
from fedstill.models.vit.schedules import parse_schedule
from fedstill.models.vit.task_bank import TaskParameters

AIM = 0.95
CLASSES = 10
ACCURACIES = {"tiny": 0.75, "small": 0.85}
"""Of all tokens; each token less per layer costs half a hundredth, as in the thesis up to -15."""
OBJECTIVE, UTILITIES = 0.6, (1.0, 0.3)
MIXES = {"even": (1.0, 1.0), "mostly tiny": (1.6, 0.4), "mostly small": (0.4, 1.6)}
"""Of the work that fills a core at all tokens, so much is asked of each trunk at load 1."""
ALLOWANCE_MS = 5.0
QUICK_RATE = 30.0
"""Queries per second of each trunk in a smoke test, whose models answer thousands."""


@dataclass(frozen=True)
class TrunkSetting:
    """A trunk of the comparison: its task, and its own registry for the process that serves it alone."""

    task: str
    weights: Path
    alone: Path


def main(arguments: Sequence[str]) -> None:
    """Measure times, play every mix both ways, print a table and ratios."""
    options = _parser().parse_args(arguments)
    if options.measure is not None:
        _measure(options)
        return
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
    if options.quick:
        options.seeds, options.seconds, options.schedules, options.batches = 1, 3.0, "0,-20", "1,4"
        options.mixes, options.backend = "even", "torch"
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.state or Path(scratch)
        trunks = _prepared(folder, options.quick)
        with Console(stderr=True).status("times") as shown:
            profiles = {
                (trunk.task, count): _profiled(folder, trunk, cores[:count], options)
                for trunk in trunks
                for count in (1, len(cores))
            }
            rows = []
            for mix in options.mixes.split(","):
                for seed in range(options.seeds):
                    load = _load(options, mix, seed, [read_profile(profiles[one.task, 1]) for one in trunks])
                    ways = [("one process", _together), ("two processes", _apart)]
                    for way, servers in ways[seed % 2 :] + ways[: seed % 2]:
                        shown.update(f"{mix}, seed {seed}: {way}")
                        started = servers(folder, trunks, profiles, cores, options)
                        earned, share = _run(started, trunks, load, profiles)
                        rows.append((mix, seed, way, earned, share))
    _report(console, rows, options)


def _prepared(folder: Path, quick: bool) -> list[TrunkSetting]:
    """Weights, and a registry with all tasks and one with each."""
    names = {"tiny": "test_vit", "small": "test_vit2"} if quick else {"small": "vit_small_patch16_224"}
    trunks = []
    for number, task in enumerate(("tiny", "small")):
        weights = folder / f"{names[task]}.safetensors" if task in names else data_path(VIT_WEIGHTS)
        if task in names and not weights.exists():
            torch.manual_seed(number)
            state = timm.create_model(names[task]).state_dict()
            save_file({name: value.contiguous() for name, value in state.items()}, weights)
        trunk = load_trunk(weights)
        generator = torch.Generator().manual_seed(number)
        head = torch.randn(CLASSES, trunk.net.width, generator=generator)
        labels = tuple(f"class{label}" for label in range(CLASSES))
        made = TaskParameters(labels, head, torch.zeros(CLASSES), {}, trunk.net.preprocess)
        for place in (folder / "both", folder / task):
            registry = TaskRegistry(place)
            if task not in registry.active():
                registry.register(task, made, trunk.fingerprint, accuracy=ACCURACIES[task])
            registry.close()
        trunks.append(TrunkSetting(task, weights, folder / task))
    return trunks


def _profiled(folder: Path, trunk: TrunkSetting, cores: Sequence[int], options: argparse.Namespace) -> Path:
    """A profile of the trunk with a thread on each of the cores, measured by a process of its own."""
    file = folder / f"{trunk.task}-{len(cores)}.json"
    if not file.exists():
        command = [sys.executable, __file__, "--measure", str(file), trunk.task, str(trunk.weights)]
        command += [
            "--schedules",
            options.schedules,
            "--batches",
            options.batches,
            "--backend",
            options.backend,
        ]
        environment = {**serving_environment(os.environ), "OMP_NUM_THREADS": str(len(cores))}
        subprocess.run(["taskset", "-c", ",".join(map(str, cores)), *command], env=environment, check=True)
    return file


def _measure(options: argparse.Namespace) -> None:
    """What ``_profiled`` starts: the times of this machine, the accuracies that are given."""
    file, task, weights = options.measure
    trunk = load_trunk(Path(weights))
    schedules = tuple(parse_schedule(name, trunk.net.layers) for name in options.schedules.split(","))
    head = TaskParameters(("a", "b"), torch.zeros(2, trunk.net.width), torch.zeros(2), {})
    batches = whole_numbers("--batches", options.batches)
    engine = Engine(
        trunk.net, {task: head}, EngineSettings(schedules, batches, "cpu", "auto", options.backend)
    )
    engine.warm_up()
    times = measure_times(engine, schedules)
    planned = tuple(
        Schedule(
            one.name,
            token_delta(one, trunk.net.patches),
            times[one].fixed_seconds,
            times[one].per_query_seconds,
            (ACCURACIES[task] + 0.005 * token_delta(one, trunk.net.patches),),
            batches[-1],
        )
        for one in schedules
    )
    source = f"{trunk.architecture}, {engine.variant}, {hardware()}, {cpu_model()}, accuracies given"
    profile = Profile(task, source, (task,), planned, engine=engine.variant, trunk=trunk.fingerprint)
    replace_text(Path(file), json.dumps(profile_to_plain(profile)))


def _load(options: argparse.Namespace, mix: str, seed: int, alone: Sequence[Profile]) -> Load:
    """Poisson arrivals of each trunk's queries. alone: the profile of each with one core."""
    rng = np.random.default_rng([seed, 7])
    rates = []
    for profile, work in zip(alone, MIXES[mix], strict=True):
        plain = profile.with_token_delta(0)
        rates.append(min(options.load * work * plain.throughput, QUICK_RATE if options.quick else math.inf))
    tasks = [profile.tasks[0] for profile in alone]
    parts = [
        draw_load(
            poisson(rate, options.seconds, rng),
            tasks,
            rng,
            [QueryKind(task, OBJECTIVE, u) for u in UTILITIES],
        )
        for task, rate in zip(tasks, rates, strict=True)
    ]
    order = np.argsort(np.concatenate([part.arrival for part in parts]), kind="stable")

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    place = np.concatenate([np.full(len(part), number) for number, part in enumerate(parts)])[order]
    return Load(column("arrival"), column("deadline"), place, column("utility"), column("draw"))


Profiles = Mapping[tuple[str, int], Path]
Started = Mapping[str, ServerOptions]
"""Of the server of each task; equal ones are one server."""


def _arguments(options: argparse.Namespace) -> tuple[str, ...]:
    return "--batches", options.batches, "--backend", options.backend


def _together(
    folder: Path,
    trunks: Sequence[TrunkSetting],
    profiles: Profiles,
    cores: Sequence[int],
    options: argparse.Namespace,
) -> Started:
    arguments, threads = list(_arguments(options)), len(cores)
    if options.engines:
        arguments += ["--device", ",".join(f"cpu:{place}" for place in range(len(cores)))]
        threads = 1
    for one in trunks:
        arguments += ["--weights", str(one.weights)]
        arguments += ["--profile", f"{one.weights}={profiles[one.task, threads]}"]
    shared = ServerOptions(folder / "both", tuple(arguments), tuple(cores), threads)
    return {one.task: shared for one in trunks}


def _apart(
    folder: Path,
    trunks: Sequence[TrunkSetting],
    profiles: Profiles,
    cores: Sequence[int],
    options: argparse.Namespace,
) -> Started:
    return {
        one.task: ServerOptions(
            one.alone,
            (*_arguments(options), "--weights", str(one.weights), "--profile", str(profiles[one.task, 1])),
            (cores[number % len(cores)],),
        )
        for number, one in enumerate(trunks)
    }


def _run(
    started: Started, trunks: Sequence[TrunkSetting], load: Load, profiles: Profiles
) -> tuple[float, float]:
    """Expected utility of the answers in time, and as a share of what was offered."""
    with ExitStack() as opened:
        running = {
            options: opened.enter_context(ServedProcess(options, "fedstill"))
            for options in dict.fromkeys(started.values())
        }
        targets = [running[started[one.task]].target for one in trunks]
        responses, seconds = asyncio.run(_play(targets, [one.task for one in trunks], load))
    given = [
        {schedule.name: schedule.accuracy[0] for schedule in read_profile(profiles[one.task, 1]).schedules}
        for one in trunks
    ]
    in_time = seconds <= load.deadline - load.arrival
    earned = sum(
        utility * given[task][response.schedule]
        for task, utility, response, good in zip(
            load.task.tolist(), load.utility.tolist(), responses, in_time.tolist(), strict=True
        )
        if response.kind == "answered" and good
    )
    failed = [response.detail for response in responses if response.kind == "failed"]
    if failed:
        raise RuntimeError(f"{len(failed)} queries failed: {failed[0]}")
    return earned, earned / float(load.utility.sum())


async def _play(
    targets: Sequence[str], tasks: Sequence[str], load: Load
) -> tuple[Sequence[Response], np.ndarray]:
    pictures = drawn_images(tasks[0], ("any",), 64, np.random.default_rng(0)).pictures
    numbers, utilities = load.task.tolist(), load.utility.tolist()
    async with AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(GrpcTarget(ServingAddress(one))) for one in targets]
        for client in clients:
            await client.describe()

        async def send(place: int, left: float) -> Response:
            number = numbers[place]
            told = max(0.0, 1000 * left - ALLOWANCE_MS)
            picture = pictures[place % len(pictures)]
            response: Response = await clients[number].query(tasks[number], picture, told, utilities[place])
            return response

        record = await play(load.arrival, load.deadline, send, outstanding=20_000, grace=GRACE_SECONDS)
    return record.responses, record.seconds


def _report(
    console: Console, rows: Sequence[tuple[str, int, str, float, float]], options: argparse.Namespace
) -> None:
    grid = Table(title=f"load {options.load:g}, expected utility of offered", box=SIMPLE_HEAD)
    for heading in ("mix", "one process", "two processes", "one over two, paired by seed", "aim"):
        grid.add_column(heading)
    for mix in dict.fromkeys(row[0] for row in rows):
        one, two = (
            [(earned, share) for which, _, way, earned, share in sorted(rows) if which == mix and way == name]
            for name in ("one process", "two processes")
        )
        mean = mean_ratio([(mine[0], other[0]) for mine, other in zip(one, two, strict=True)])
        shares = [f"{100 * fmean(share for _, share in way):.1f} %" for way in (one, two)]
        if mean is None:
            grid.add_row(mix, *shares, "ratio: nothing was earned", "missed")
            continue
        said = f"ratio {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
        judged = "too few seeds" if options.seeds < 2 else "met" if mean.low >= AIM else "missed"
        grid.add_row(mix, *shares, said, f"at least {AIM}: {judged}")
    console.print(grid)
    console.print(f"{hardware()}, {cpu_model()}, torch {torch.__version__}")
    if options.out is not None:
        names = ("mix", "seed", "way", "earned", "share")
        runs = [dict(zip(names, row, strict=True)) for row in rows]
        replace_text(options.out, json.dumps({"load": options.load, "runs": runs}, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--engines",
        action="store_true",
        help="the one process as an engine on each core (--device cpu:0,cpu:1)",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test with tiny random models")
    parser.add_argument("--load", type=float, default=1.5, help="of what the cores do at all tokens")
    parser.add_argument("--mixes", default=",".join(MIXES), help="how the load is split")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--schedules", default="0,-5,-10,-15,-20")
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--state", type=Path, help="registries and profiles, kept (default: none)")
    parser.add_argument("--out", type=Path, help="JSON of the runs")
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "TASK", "WEIGHTS"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
