"""Two replicas at twice the capacity: ``fedstill serve --ray`` beside Ray Serve's own batching and routing.

Both run on a Ray cluster of two nodes on this machine, a core and a torch thread for each replica, get the same images
at the same times, and are judged by the client's clock and the true labels. Ray Serve batches as many queries as we do
at most, and is also run with a short queue, with that also with static token merging, on OpenVINO and with both. A
replica of it takes 16 queries beside those in its queue; on a slow processor these are more than a deadline allows, so
it is run with 4 and with 2 as well, batches included, and hardly a queue. Its queries travel as JSON over HTTP, ours
over gRPC. The generator shares the cores with the servers, in all ways alike. Capacity is what our two replicas answer
at all tokens to clients that wait.

    python benchmarks/serving/ray_replicas.py --state runs/serving_live --markdown docs/results/ray_replicas.md
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.engine.environment import serving_environment
from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings
from fedstill.common.atomic_files import replace_text
from fedstill.common.child_process import Child
from fedstill.common.flower_cli import free_port
from fedstill.common.provenance import cpu_model, git_revision, hardware
from fedstill.evaluation.serving.closed_loop import PLAIN, plain_rate
from fedstill.evaluation.serving.learnt_state import learn_missing
from fedstill.evaluation.serving.live_loadtest import LiveSettings, Target, ask, live_load
from fedstill.evaluation.serving.live_rows import LiveRun, run_row
from fedstill.evaluation.serving.live_sweep import rotated
from fedstill.evaluation.serving.open_loop import GRACE_SECONDS
from fedstill.evaluation.serving.results import RunRow
from fedstill.evaluation.serving.served_process import ServedProcess, ServerOptions
from fedstill.evaluation.serving.served_setting import add_setting_options, real_setting, tiny_setting
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import TaskImages, held_out_images
from fedstill.evaluation.serving.virtual import LoadTest, draw
from fedstill.models.vit.schedules import layer_wise_schedule

sys.path.insert(0, str(Path(__file__).parent))
from serving_baselines import LEAST, OURS, RAY_QUEUES, START_SECONDS, Contender, HttpTarget, named, report

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.ray_cluster import LOOPBACK, ray_cluster

REPLICAS = 2
LOAD = 2.0
FEW_TAKEN, FEW_WAIT = (4, 2), 2
"""Queries that a replica takes, and that wait for all of them, where deadlines are short."""
MERGING = ("-10", "-15", LEAST, layer_wise_schedule(2).name)


@dataclass(frozen=True)
class Place:
    """What both serve. profile: of one thread, so that no replica measures beside the other."""

    state: Path
    weights: Path
    arguments: tuple[str, ...]
    profile: Path
    pictures: tuple[TaskImages, ...]


def contenders(options: argparse.Namespace) -> list[Contender]:
    """Ours, then Ray Serve in every form."""
    longest, short = RAY_QUEUES
    if options.quick:
        return [Contender(OURS), Contender("ray", longest)]
    merging = [name for name in options.merging.split(",") if name]
    merged = [Contender("ray", short, name) for name in merging]
    backend = "openvino" if find_spec("openvino") else "torch"
    faster = [Contender("ray", short, name, backend) for name in ("0", LEAST) if backend != "torch"]
    few = [
        Contender("ray", FEW_WAIT, name, backend, taken) for taken in FEW_TAKEN for name in ("0", *merging)
    ]
    found = [Contender("ray", longest), Contender("ray", short), *merged, *faster, *few]
    return [Contender(OURS), *named(found, options.only)]


@contextmanager
def ours(place: Place, policy: str) -> Iterator[ServedProcess]:
    """``fedstill serve --ray`` with its replicas, on a cluster of its own."""
    asked = [one for one in place.arguments if not one.startswith("--schedules")]  # the profile names them
    with ray_cluster(REPLICAS) as address:
        asked += ["--profile", str(place.profile), "--ray", address, "--replicas", str(REPLICAS)]
        with ServedProcess(ServerOptions(place.state, tuple(asked)), policy) as server:
            yield server


@contextmanager
def theirs(place: Place, contender: Contender) -> Iterator[int]:
    """Ray Serve's replicas, on a cluster of their own; gives the port. Raises RuntimeError if they do not start."""
    port, child = free_port(), Child(contender.name.replace(" ", "-"), place.state)
    with tempfile.TemporaryDirectory() as folder, ray_cluster(REPLICAS) as address:
        ready = Path(folder) / "ready"
        script = Path(__file__).resolve().with_name("baseline_ray.py")
        words = [str(place.state.resolve()), str(place.weights.resolve()), str(contender.knob), str(port)]
        words += [
            contender.schedule,
            contender.backend,
            address,
            str(REPLICAS),
            str(contender.taken),
            str(ready),
        ]
        environment = {**serving_environment(os.environ), "OMP_NUM_THREADS": "1"}
        child.start([sys.executable, str(script), *words], environment, Path.cwd())
        try:
            end = time.monotonic() + START_SECONDS
            while not ready.exists():
                if child.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{contender.name} does not start: {child.log_tail()}")
                time.sleep(0.1)
            yield port
        finally:
            child.stop()


def run_one(contender: Contender, place: Place, test: LoadTest, seed: int) -> RunRow:
    """One seed of the load on servers of its own."""
    names = [sent.task for sent in place.pictures]
    load = live_load(draw("synthetic", test, LOAD, seed, names, None), LiveSettings())

    async def play(target: Target) -> RunRow:
        labels, record = await ask(target, load, place.pictures, LiveSettings(), GRACE_SECONDS)
        return run_row(LiveRun(contender.name, "synthetic", LOAD, seed, load, labels, record, test.seconds))

    async def over_grpc(address: ServingAddress) -> RunRow:
        async with GrpcTarget(address) as target:
            await target.describe()
            return await play(target)

    async def over_http(port: int) -> RunRow:
        async with HttpTarget(port) as target:
            return await play(target)

    if contender.kind == OURS:
        with ours(place, OURS) as server:
            return asyncio.run(over_grpc(ServingAddress(server.target)))
    with theirs(place, contender) as port:
        return asyncio.run(over_http(port))


def prepared(options: argparse.Namespace, scratch: Path) -> Place:
    """Tasks are learnt and the profile is measured by one server with one thread, if they are not there."""
    state = options.state or (scratch / "state" if options.quick else Path("runs") / "serving_live")
    setting = (
        tiny_setting(scratch)
        if options.quick
        else real_setting(options.val_images, options.schedules, options.batches)
    )
    images = 40 if options.quick else options.train_images
    learn_missing(state, setting.tasks, setting.weights, LearnSettings(images, images // 4), lambda _: None)
    core = [min(os.sched_getaffinity(0))]
    with ServedProcess(ServerOptions(state, setting.arguments, core), PLAIN):
        pass
    files = (state / "serve").glob("profile-*.json")
    profile = max(files, key=lambda file: file.stat().st_mtime)
    pictures = tuple(held_out_images(task, options.pictures) for task in setting.tasks)
    return Place(state, setting.weights, setting.arguments, profile.resolve(), pictures)


def main(arguments: Sequence[str]) -> None:
    """Run everything, print a table and ratios."""
    options = _parser().parse_args(arguments)
    os.environ.update(LOOPBACK)
    if options.quick:
        options.seeds, options.seconds, options.rate = 1, 2.0, 60.0
    # Its own printing is wide where the page needs whole rows.
    console = Console(soft_wrap=True, highlight=False, width=160, record=True)
    rows: list[RunRow] = []
    with tempfile.TemporaryDirectory() as scratch, Console(stderr=True).status("tasks and profile") as shown:
        place = prepared(options, Path(scratch))
        rate = options.rate
        if rate is None:
            shown.update("capacity")
            with ours(place, PLAIN) as server:
                rate = plain_rate(server, place.pictures)
        test = LoadTest(
            ("synthetic",), (OURS,), (LOAD,), options.seeds, options.seconds, rate, equal=options.equal
        )
        for seed in range(options.seeds):
            for contender in rotated(contenders(options), seed):
                shown.update(f"seed {seed}: {contender.name}")
                rows.append(run_one(contender, place, test, seed))
    report(console, rows, rate, LOAD)
    text = console.export_text(styles=False)
    if options.out is not None:
        content = {
            "hardware": hardware(),
            "rate": rate,
            "load": LOAD,
            "equal": options.equal,
            "runs": [asdict(row) for row in rows],
        }
        replace_text(options.out, json.dumps(content, indent=1) + "\n")
    if options.markdown is not None:
        replace_text(options.markdown, page(options, text))


def page(options: argparse.Namespace, text: str) -> str:
    """The results as a page."""
    words = ["--state runs/serving_live", f"--seeds {options.seeds}"]
    words += ["--equal"] if options.equal else []
    words += [f"--only '{options.only}'"] if options.only else []
    words += [] if options.merging == ",".join(MERGING) else [f"--merging={options.merging}"]
    worth = "every query worth 1" if options.equal else "utilities as the thesis draws them"
    return (
        "# Two replicas beside Ray Serve's own batching\n\n"
        f"`python benchmarks/serving/ray_replicas.py {' '.join(words)} --markdown docs/results/ray_replicas.md`: "
        f"{cpu_model()}, {os.cpu_count()} cores for two replicas, their front and the load generator; {worth}; "
        f"revision {git_revision()}. What is compared: the first lines of the benchmark.\n\n"
        f"```text\n{text.rstrip()}\n```\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--equal", action="store_true", help="every query is worth 1")
    parser.add_argument(
        "--merging", default=",".join(MERGING), help="token schedules that Ray Serve runs, too"
    )
    parser.add_argument("--only", default="", help="these settings of Ray Serve, by name (default: all)")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0)
    add_setting_options(parser)
    parser.add_argument("--out", type=Path, help="JSON of the runs")
    parser.add_argument("--markdown", type=Path, help="the page of results")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
