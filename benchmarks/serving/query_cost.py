"""CPU time that a server spends for a query, beside an earlier revision of itself: what names, ids and logs cost.

Both serve the same task on the same weights at all tokens, in torch, fp32, with one thread on one core. Clients that
wait ask them in turn from another core, while the other server is stopped (SIGSTOP). Counted is the CPU time of the
server and its children. The earlier revision is checked out beside; by default the last one before the Open Inference
surface.

    python benchmarks/serving/query_cost.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.engine.environment import serving_environment
from fedstill.common.paths import VIT_WEIGHTS, data_path
from fedstill.common.provenance import cpu_model, git_revision
from fedstill.datasets.images.image_tasks import find_images
from fedstill.evaluation.serving.closed_loop import PLAIN, closed_loop_rate
from fedstill.evaluation.serving.served_setting import split_cores
from fedstill.evaluation.serving.summary import mean_ratio
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import TaskImages, held_out_images

BEFORE = "5e79734^"
TASK = "cifar10"
AIM = 1.02
RUN = [sys.executable, "-c", "from fedstill.cli.main import main; main()"]
START_SECONDS = 600.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Side:
    """One of the two. root: its checkout. more: options that only it has."""

    name: str
    root: Path
    state: Path
    more: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """Its own code comes first."""
        own = {"PYTHONPATH": str(self.root / "importroot"), "OMP_NUM_THREADS": "1"}
        return {**serving_environment(os.environ), **own}

    def run(self, *words: str) -> None:
        """A command of its ``fedstill``, to its end. Raises CalledProcessError."""
        subprocess.run([*RUN, *words], env=self.environment(), check=True, stdout=subprocess.DEVNULL)


class Server:
    """A running one; stopped between its turns."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self._port = psutil.Process(process.pid), port

    @contextmanager
    def turn(self) -> Iterator[str]:
        """Inside it runs; gives its address."""
        for one in self._all():
            one.send_signal(signal.SIGCONT)
        try:
            yield f"127.0.0.1:{self._port}"
        finally:
            for one in self._all():
                one.send_signal(signal.SIGSTOP)

    def seconds(self) -> float:
        """CPU time so far."""
        return sum(sum(one.cpu_times()[:2]) for one in self._all())

    def _all(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


def main(arguments: Sequence[str]) -> None:
    """Print the ratio of each pair, and their mean with its interval."""
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    images = find_images(TASK, None)
    pictures = [held_out_images(images, 300)]
    server_cores, client_cores = split_cores()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        earlier = Path(scratch) / "earlier"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(earlier), options.before], check=True)
        stack.callback(subprocess.run, [*git, "remove", "--force", str(earlier)], check=True)
        before = Side("before", earlier, Path(scratch) / "before")
        after = Side("after", ROOT, Path(scratch) / "after", ("--backend", "torch", "--lame-duck", "0"))
        before.run("tasks", "add", TASK, "--registry", str(before.state), "--train-images", "100")
        shutil.copytree(before.state, after.state)
        servers = {side.name: stack.enter_context(_served(side, server_cores)) for side in (before, after)}
        if client_cores is not None:
            os.sched_setaffinity(0, client_cores)
        pairs = []
        for number in range(options.pairs):
            found = {}
            for name in ("before", "after") if number % 2 else ("after", "before"):
                found[name] = asyncio.run(_cost(servers[name], pictures, options.seconds))
            pairs.append((found["after"], found["before"]))
            console.print(
                f"pair {number + 1}: {1e3 * found['before']:.3f} ms per query before, {1e3 * found['after']:.3f} ms "
                f"now, ratio {found['after'] / found['before']:.4f}"
            )
    mean = mean_ratio(pairs)
    assert mean is not None
    console.print(
        f"{cpu_model()}, {git_revision()} beside {options.before}, {len(pairs)} pairs: ratio {mean.value:.4f} "
        f"[{mean.low:.4f}, {mean.high:.4f}], {'meets' if mean.high <= AIM else 'misses'} {AIM}"
    )


async def _cost(server: Server, pictures: Sequence[TaskImages], seconds: float) -> float:
    """CPU seconds per query."""
    with server.turn() as target:
        async with GrpcTarget(ServingAddress(target)) as asked:
            await closed_loop_rate(asked, pictures, 0.5, 0.0)  # awake again
            began = server.seconds()
            rate = await closed_loop_rate(asked, pictures, seconds, 0.0)
            return (server.seconds() - began) / (rate * seconds)


@contextmanager
def _served(side: Side, cores: Sequence[int] | None) -> Iterator[Server]:
    words = ["serve", "--state", str(side.state), "--insecure", "--listen", "127.0.0.1:0", "--web", ""]
    words += [
        "--policy",
        PLAIN,
        "--weights",
        str(data_path(VIT_WEIGHTS)),
        "--schedules=0,-10",
        "--batches",
        "1,8",
    ]
    words += ["--precision", "fp32", "--val-images", "8", *side.more]
    file = side.state / "serve" / "server.json"
    with (side.state / "serve.log").open("wb") as log:
        process = subprocess.Popen([*RUN, *words], env=side.environment(), stdout=log, stderr=log)
        try:
            if cores is not None:
                psutil.Process(process.pid).cpu_affinity(list(cores))
            told: dict[str, Any] = {"ready": False}
            end = time.monotonic() + START_SECONDS
            while not told["ready"]:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((side.state / "serve.log").read_text()[-2000:])
                time.sleep(0.1)
                if file.exists():
                    told = json.loads(file.read_text())
            server = Server(process, told["port"])
            with server.turn():
                pass  # stopped from now on
            yield server
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="the earlier revision")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
