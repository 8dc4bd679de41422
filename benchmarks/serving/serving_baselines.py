"""Goodput at twice the capacity: fedstill beside the same model behind LitServe and Ray Serve with dynamic batching.

All serve the same heads on the same trunk with one torch thread on the same core, get the same images at the same times
from a generator on another core, and are judged by the client's clock and the true labels. The others get batches as
large as ours, and each is also run with its own setting against overload (LitServe: timeout, Ray Serve: length of the
queue), and with that also with static token merging and on OpenVINO. Their queries travel as JSON over HTTP, ours over
gRPC.

What a query is worth is told to ours alone, so we are run twice, with utilities as the thesis draws them and with equal
ones, and what the others answered is judged by both.

    python benchmarks/serving/serving_baselines.py --markdown docs/results/serving_baselines.md
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from types import TracebackType

import httpx
import numpy as np
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.engine.environment import serving_environment
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings
from fedstill.common.atomic_files import replace_text
from fedstill.common.child_process import Child
from fedstill.common.flower_cli import free_port
from fedstill.common.provenance import cpu_model, git_revision, hardware
from fedstill.datasets.loads.query_mix import Load
from fedstill.evaluation.serving.learnt_state import learn_missing
from fedstill.evaluation.serving.live_loadtest import Description, LiveSettings, Target, ask, live_load
from fedstill.evaluation.serving.live_rows import LiveRun, run_row
from fedstill.evaluation.serving.live_sweep import measured, rotated
from fedstill.evaluation.serving.open_loop import GRACE_SECONDS, Response
from fedstill.evaluation.serving.plain_model import BATCH
from fedstill.evaluation.serving.results import RunRow
from fedstill.evaluation.serving.served_process import ServedProcess, ServerOptions
from fedstill.evaluation.serving.served_setting import (
    add_setting_options,
    real_setting,
    split_cores,
    tiny_setting,
)
from fedstill.evaluation.serving.summary import mean_ratio
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import TaskImages, held_out_images
from fedstill.evaluation.serving.virtual import LoadTest, draw
from fedstill.models.vit.schedules import layer_wise_schedule

OURS = "fedstill"
MIXED, EQUAL = "mixed", "equal"
"""What queries are worth."""
START_SECONDS = 180.0
LITSERVE_TIMEOUTS = (30.0, 1.0, 0.3)
"""Seconds, its default first: a query that has waited longer is refused when its turn comes."""
LEAST = "-20"
"""The schedule of the fewest tokens that the others run; they run it on OpenVINO, too."""
MERGING = ",".join(("-10", "-15", LEAST, layer_wise_schedule(2).name))
RAY_QUEUES = (-1, 8)
"""Queries that may wait, its default (any number) first; further ones are refused."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server to compare: its kind, its setting against overload (see the constants), and its model's form.

    taken: queries that a replica of Ray Serve takes beside those that wait.
    """

    kind: str
    knob: float = 0.0
    schedule: str = "0"
    backend: str = "torch"
    taken: int = 2 * BATCH

    @property
    def name(self) -> str:
        form = "" if self.schedule == "0" else f" {self.schedule}"
        form += "" if self.backend == "torch" else f" {self.backend}"
        form += "" if self.taken == 2 * BATCH else f" takes {self.taken}"
        return self.kind if self.kind == OURS else f"{self.kind} {self.knob:g}{form}"


class HttpTarget:
    """The others, seen from the load generator: a POST per query. Use as ``async with``."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}/predict"

    async def __aenter__(self) -> HttpTarget:
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(limits=unlimited, timeout=None, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def describe(self) -> Description:
        """These servers have no description."""
        raise NotImplementedError

    async def query(self, task: str, picture: bytes, latency_ms: float, utility: float) -> Response:
        """Deadline and utility are not sent, because these servers do not accept them."""
        content = {"task": task, "image": base64.b64encode(picture).decode("ascii")}
        try:
            answer = await self._client.post(self._address, json=content)
        except httpx.HTTPError as error:
            return Response("failed", detail=type(error).__name__)
        if answer.status_code in (429, 503, 504):
            return Response("overload")
        if answer.status_code != 200:
            return Response("failed", detail=f"HTTP {answer.status_code}")
        told = answer.json()
        return Response("answered", told["label"], "0", float("nan"), told["ms"], told["batch"])


class OtherProcess:
    """The server of a contender, on the given cores. Raises RuntimeError if it does not start."""

    def __init__(self, contender: Contender, state: Path, weights: Path, cores: Sequence[int] | None) -> None:
        self._contender, self._state, self._weights, self._cores = contender, state, weights, cores
        self._child = Child(contender.name.replace(" ", "-"), state)
        self.port = free_port()

    def __enter__(self) -> OtherProcess:
        environment = {**serving_environment(os.environ), "OMP_NUM_THREADS": str(len(self._cores or (0,)))}
        script = Path(__file__).resolve().with_name(f"baseline_{self._contender.kind}.py")
        command = [sys.executable, str(script), str(self._state.resolve()), str(self._weights.resolve())]
        command += [
            str(self._contender.knob),
            str(self.port),
            self._contender.schedule,
            self._contender.backend,
        ]
        self._child.start(command, environment, Path.cwd())
        if self._cores is not None and self._child.pid is not None:
            psutil.Process(self._child.pid).cpu_affinity(list(self._cores))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()

    async def wait(self, target: HttpTarget, picture: TaskImages) -> None:
        """Until it answers a query."""
        end = time.monotonic() + START_SECONDS
        while (await target.query(picture.task, picture.pictures[0], 0.0, 0.0)).kind != "answered":
            if self._child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self._contender.name} does not start: {self._child.log_tail()}")
            await asyncio.sleep(0.2)


def main(arguments: Sequence[str]) -> None:
    """Run everything, print a table and ratios for each kind of utilities."""
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False, width=160, record=True)
    with tempfile.TemporaryDirectory() as scratch:
        state = options.state or (Path(scratch) / "state" if options.quick else Path("runs") / "serving_live")
        setting = (
            tiny_setting(Path(scratch))
            if options.quick
            else real_setting(options.val_images, options.schedules, options.batches)
        )
        if options.quick:
            options.seeds, options.seconds, options.rate, options.contenders = 1, 2.0, 60.0, "litserve"
        contenders = [Contender(OURS), *_others(options)]
        machine = hardware()  # of which this process keeps one core
        server_cores, client_cores = split_cores()
        if client_cores is not None:
            os.sched_setaffinity(0, client_cores)
        images = 40 if options.quick else options.train_images
        rows: dict[str, list[RunRow]] = {MIXED: [], EQUAL: []}
        with Console(stderr=True).status("tasks") as shown:
            learn_missing(
                state, setting.tasks, setting.weights, LearnSettings(images, images // 4), shown.update
            )
            ours = ServerOptions(state, setting.arguments, server_cores)
            pictures = [held_out_images(task, options.pictures) for task in setting.tasks]
            profile, rate = measured(ours, pictures, options.rate)
            test = LoadTest(("synthetic",), (OURS,), (options.load,), options.seeds, options.seconds, rate)
            for seed in range(options.seeds):
                for contender in rotated(contenders, seed):
                    shown.update(f"seed {seed}: {contender.name}")
                    try:
                        found = run_one(contender, ours, setting.weights, test, pictures, seed)
                    except RuntimeError as error:
                        console.print(f"left out: {error}")
                        continue
                    for utilities, row in found.items():
                        rows[utilities].append(row)
    console.print(ceiling(profile, options.load * rate))
    for utilities, some in rows.items():
        console.print(f"\n{utilities} utilities")
        report(console, some, rate, options.load)
    text = console.export_text(styles=False)
    if options.out is not None:
        content = {
            "hardware": machine,
            "rate": rate,
            "load": options.load,
            "runs": {utilities: [asdict(row) for row in some] for utilities, some in rows.items()},
        }
        replace_text(options.out, json.dumps(content, indent=1) + "\n")
        console.print(f"results: {options.out}")
    if options.markdown is not None:
        command = f"python benchmarks/serving/serving_baselines.py {shlex.join(arguments)}"
        replace_text(options.markdown, page(command, machine, text))


def run_one(
    contender: Contender,
    ours: ServerOptions,
    weights: Path,
    test: LoadTest,
    pictures: Sequence[TaskImages],
    seed: int,
) -> dict[str, RunRow]:
    """One seed of the load, by what queries are worth: for ours a server each, for another one and the same."""
    names = [sent.task for sent in pictures]
    mixed = live_load(draw("synthetic", test, test.loads[0], seed, names, None), LiveSettings())
    loads = {MIXED: mixed, EQUAL: replace(mixed, utility=np.ones(len(mixed)))}

    async def play(target: Target, sent: Load, judged: Sequence[Load]) -> list[RunRow]:
        labels, record = await ask(target, sent, pictures, LiveSettings(), GRACE_SECONDS)
        about = (contender.name, "synthetic", test.loads[0], seed)
        return [run_row(LiveRun(*about, load, labels, record, test.seconds)) for load in judged]

    async def over_http(server: OtherProcess) -> list[RunRow]:
        async with HttpTarget(server.port) as target:
            await server.wait(target, pictures[0])
            return await play(target, mixed, list(loads.values()))

    async def over_grpc(server: ServedProcess, load: Load) -> list[RunRow]:
        async with GrpcTarget(ServingAddress(server.target)) as target:
            await target.describe()
            return await play(target, load, [load])

    if contender.kind == OURS:
        found = []
        for load in loads.values():
            with ServedProcess(ours, OURS) as server:
                found += asyncio.run(over_grpc(server, load))
    else:
        with OtherProcess(contender, ours.state, weights, ours.cores) as other:
            found = asyncio.run(over_http(other))
    return dict(zip(loads, found, strict=True))


def ceiling(profile: Profile, rate: float) -> str:
    """What the best schedule would answer right if it answered as many queries as the engine alone can run in time."""
    shares = {one.name: fmean(one.accuracy) * min(1.0, one.throughput / rate) for one in profile.schedules}
    best = max(profile.schedules, key=lambda one: shares[one.name])
    answered = min(1.0, best.throughput / rate)
    return (
        f"ceiling of right answers: {100 * shares[best.name]:.1f} % of {rate:.0f} queries/s, if the engine only ran "
        f"schedule {best.name}, {best.throughput:.0f} images/s in full batches ({100 * answered:.0f} % answered)"
    )


def page(command: str, machine: str, text: str) -> str:
    """The results as a page."""
    return (
        "# Beside LitServe and Ray Serve at twice the capacity\n\n"
        f"`{command}`: {cpu_model()}, {machine}; server and load generator on one core each; revision "
        f"{git_revision()}. What is compared: the first lines of the benchmark.\n\n"
        f"```text\n{text.rstrip()}\n```\n"
    )


def report(console: Console, rows: Sequence[RunRow], rate: float, load: float) -> None:
    """A table, and our goodput over the best of each other kind."""
    names = list(dict.fromkeys(row.policy for row in rows))
    grid = Table(title=f"{load:g} x {rate:.1f} queries/s, means over seeds", box=SIMPLE_HEAD)
    for heading in ("server", "utility of offered", "right in time", "wrong", "late", "not served", "batch"):
        grid.add_column(heading, justify="left" if heading == "server" else "right")
    for name in names:
        mine = [row for row in rows if row.policy == name]
        types = [fmean(getattr(row, f"type{kind}") / row.queries for row in mine) for kind in (1, 2, 3, 4)]
        shares = (fmean(row.share for row in mine), *types)
        grid.add_row(
            name, *(f"{100 * part:.1f} %" for part in shares), f"{fmean(row.mean_batch for row in mine):.1f}"
        )
    console.print(grid)
    ours = {row.seed: row for row in rows if row.policy == OURS}
    for name in names:
        pairs = [(ours[row.seed], row) for row in rows if row.policy == name and row.seed in ours]
        if name == OURS or not pairs:
            continue
        said = []
        for what, words in (("share", "utility in time"), ("type1", "right answers in time")):
            amounts = [(getattr(mine, what), getattr(other, what)) for mine, other in pairs]
            mean = mean_ratio(amounts)
            if mean is None:
                said.append(f"{words}: none of {name} on some seed")
                continue
            each = ", ".join(f"{first / second:.2f}" for first, second in amounts)
            said.append(f"{words} {mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}] ({each})")
        console.print(f"ratio of {OURS} to {name}, paired: {'; '.join(said)}")


def _others(options: argparse.Namespace) -> list[Contender]:
    """All settings against overload, and the last of them with every form of the model; of these, what --only names."""
    knobs: dict[str, tuple[float, ...]] = {"litserve": LITSERVE_TIMEOUTS, "ray": RAY_QUEUES}
    kinds = list(dict.fromkeys(options.contenders.split(",")))
    if unknown := set(kinds) - set(knobs):
        raise SystemExit(f"--contenders: no {', '.join(sorted(unknown))}; there are {', '.join(knobs)}")
    if options.quick:
        return [Contender(kind, knobs[kind][0]) for kind in kinds]
    plain = [Contender(kind, knob) for kind in kinds for knob in knobs[kind]]
    merging = [name for name in options.merging.split(",") if name]
    formed = [Contender(kind, knobs[kind][-1], name) for kind in kinds for name in merging]
    faster = [
        Contender(kind, knobs[kind][-1], name, "openvino")
        for kind in kinds
        for name in ("0", LEAST)
        if find_spec("openvino")
    ]
    return named([*plain, *formed, *faster], options.only)


def named(contenders: Sequence[Contender], only: str) -> list[Contender]:
    """Those that ``--only`` names, all if it is empty. Raises SystemExit for an unknown one."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := set(names) - {one.name for one in contenders}:
        raise SystemExit(
            f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(one.name for one in contenders)}"
        )
    return [one for one in contenders if not names or one.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contenders", default="litserve,ray", help="others to compare with")
    parser.add_argument("--merging", default=MERGING, help="token schedules that the others run, too")
    parser.add_argument("--only", default="", help="these settings of the others, by name (default: all)")
    parser.add_argument("--load", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0)
    add_setting_options(parser)
    parser.add_argument("--out", type=Path, help="JSON of the runs")
    parser.add_argument("--markdown", type=Path, help="the page of results")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
