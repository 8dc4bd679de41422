"""A live server under everything at once, and whether it lost a request, memory or its own readiness.

`fedstill serve` runs as its own process with a small random ViT, so this is about the server around it. At the same
time: bursts of 20 times the calm load over gRPC and HTTP, clients that vanish, damaged pictures, objectives of
nothing, hot swaps and deletions of tasks, pictures of 16.8 million pixels by 4 and 64 in one request, and a process
that is stopped (SIGSTOP) for up to 3 s. Asked are one answer for each request, memory within 20 % of the start once
it is calm again, and readiness that is true: whenever ``/readyz`` says so, a valuable query with 5 s is answered.

    python benchmarks/serving/serving_soak.py --markdown docs/results/serving_soak.md    # ten minutes
    python benchmarks/serving/serving_soak.py --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import timm
import torch
from rich.console import Console
from safetensors.torch import save_file

from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, profile_to_plain
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.common.atomic_files import replace_text
from fedstill.common.provenance import cpu_model, git_revision, hardware
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.protos import serving_pb2 as pb
from fedstill.protos.serving_pb2_grpc import ServingStub

sys.path.insert(0, str(Path(__file__).parent))
from soak_load import GUESTS, PROBE_SECONDS, TASKS, Clients, Tally

ARCHITECTURE, WIDTH = "test_vit", 64  # timm's own tiny ViT for tests, 160 pixels
CALM, BURST = 30.0, 600.0
"""Requests per second between and in bursts."""
BURST_EVERY, BURST_SECONDS = 60.0, 30.0
OUTSTANDING = 4000
BOMBS_EVERY, STOP_EVERY, LOOK_EVERY = 13.0, 29.0, 2.0
LONGEST_STOP = 3.0
QUIET_SECONDS = 30.0
"""Of the calm load alone, before and after: memory is compared there."""
console = Console(highlight=False, soft_wrap=True)


@dataclass
class Looks:
    """What was seen of readiness: (ready, a probe was answered in time) -> how often."""

    seen: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    stops: int = 0


@dataclass(frozen=True)
class Report:
    """Of a whole run. memory: MiB of the server's process tree, medians before and after."""

    seconds: float
    tally: Tally
    looks: Looks
    unanswered: int
    memory: tuple[float, float]
    exit_code: int

    @property
    def lines(self) -> list[str]:
        """In words."""
        tally, looks = self.tally, self.looks
        before, after = self.memory
        return [
            f"{tally.made.total()} requests in {self.seconds:g} s; without an answer: {self.unanswered}; answers and "
            f"requests differ by {tally.made.total() - tally.ended.total()}.",
            *(
                f"{kind}: {made}: "
                + ", ".join(
                    f"{count} {how}" for (one, how), count in tally.ended.most_common() if one == kind
                )
                + f"; the slowest end after {tally.slowest.get(kind, 0):.1f} s."
                for kind, made in tally.made.most_common()
            ),
            f"The process was stopped {looks.stops} times, up to {LONGEST_STOP:g} s.",
            f"Ready and a probe of {PROBE_SECONDS:g} s answered: {looks.seen[True, True]} times; ready and not "
            f"answered: {looks.seen[True, False]}; not ready, but answered: {looks.seen[False, True]}; neither: "
            f"{looks.seen[False, False]}.",
            f"Memory of the server and its children: {before:.0f} MiB before, {after:.0f} MiB after "
            f"({after / before - 1:+.0%}; asked 20 %).",
            f"Exit code after SIGTERM: {self.exit_code}.",
        ]


def main(given: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=600.0)
    arguments.add_argument("--policy", default="fedstill")
    arguments.add_argument("--markdown", type=Path, help="write the results as a page")
    options = arguments.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        registry, trunk = prepare(place)
        process, ports = start(place, options.policy)
        try:
            tally, looks, unanswered, memory = asyncio.run(
                soak(process, ports, registry, trunk, options.seconds)
            )
            process.send_signal(signal.SIGTERM)
            report = Report(options.seconds, tally, looks, unanswered, memory, process.wait(60))
        finally:
            if process.poll() is None:
                process.kill()
    for line in report.lines:
        console.print(line)
    if options.markdown:
        replace_text(options.markdown, page(report))


def page(report: Report) -> str:
    """As Markdown."""
    about = " ".join((__doc__ or "").split("\n\n")[1].split())
    return "\n".join(
        [
            "# Ten minutes of everything at once",
            "",
            f"`python benchmarks/serving/serving_soak.py --seconds {report.seconds:g}`, revision {git_revision()}, "
            f"{cpu_model()}, {hardware()}; other work may have run beside it, so times say little.",
            "",
            about,
            "",
            *(f"- {line}" for line in report.lines),
            "",
        ]
    )


def prepare(place: Path) -> tuple[TaskRegistry, str]:
    torch.manual_seed(0)
    state = {name: value.contiguous() for name, value in timm.create_model(ARCHITECTURE).state_dict().items()}
    save_file(state, place / "test_vit.safetensors")
    trunk = load_trunk(place / "test_vit.safetensors").fingerprint
    registry = TaskRegistry(place / "tasks")
    for seed, name in enumerate(TASKS):
        registry.register(name, made_task(seed), trunk, accuracy=0.9)
    schedules = tuple(
        Schedule(name, delta, 0.002, seconds, (0.9 + delta / 200,) * len(TASKS), 32)
        for name, delta, seconds in (("0", 0, 0.006), ("-20", -20, 0.004))
    )
    plain = profile_to_plain(Profile("made", "by hand", TASKS, schedules))
    (place / "profile.json").write_text(json.dumps(plain))
    return registry, trunk


def made_task(seed: int) -> TaskParameters:
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(5, WIDTH, generator=generator), torch.randn(5, generator=generator)
    return TaskParameters(tuple("abcde"), weight, bias)


def start(place: Path, policy: str) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    command = [sys.executable, "-c", "from fedstill.cli.main import main; main()", "serve"]
    command += ["--state", str(place / "tasks"), "--weights", str(place / "test_vit.safetensors")]
    command += ["--profile", str(place / "profile.json"), "--insecure", "--policy", policy]
    for face in ("--listen", "--rest", "--web"):
        command += [face, "127.0.0.1:0"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=log)
    ready = place / "tasks" / "serve" / "server.json"
    while not ready.exists():
        if process.poll() is not None:
            raise SystemExit((place / "log").read_text())
        time.sleep(0.1)
    return process, json.loads(ready.read_text())


async def soak(
    process: subprocess.Popen[bytes],
    ports: dict[str, int],
    registry: TaskRegistry,
    trunk: str,
    seconds: float,
) -> tuple[Tally, Looks, int, tuple[float, float]]:
    server, rng, looks = psutil.Process(process.pid), np.random.default_rng(0), Looks()
    rest, web = (f"http://127.0.0.1:{ports[name]}" for name in ("rest_port", "web_port"))
    limits = httpx.Limits(max_connections=OUTSTANDING)
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{ports['port']}") as channel,
        httpx.AsyncClient(base_url=rest, timeout=60.0, limits=limits) as http,
        httpx.AsyncClient(base_url=web, timeout=10.0) as page_client,
    ):
        stub = ServingStub(channel)  # type: ignore[no-untyped-call]
        clients, waiting = Clients(stub, http, rng), set[asyncio.Task[None]]()
        while (await page_client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.1)
        await load(clients, waiting, rng, QUIET_SECONDS, bursts=False)
        before = tree_memory(server)
        troubles = [
            asyncio.create_task(one)
            for one in (
                keep_house(stub, registry, trunk),
                keep_bombing(clients, waiting),
                keep_stopping(server, rng, looks),
                keep_looking(clients, page_client, looks),
            )
        ]
        await load(clients, waiting, rng, seconds, bursts=True)
        for one in troubles:
            one.cancel()
            with suppress(asyncio.CancelledError, grpc.RpcError):  # whatever it was waiting for
                await one
        server.resume()
        unanswered = len((await asyncio.wait(waiting, timeout=90))[1]) if waiting else 0
        await load(clients, waiting, rng, QUIET_SECONDS, bursts=False)
        if waiting:
            unanswered += len((await asyncio.wait(waiting, timeout=60))[1])
        if not await clients.probe():
            raise SystemExit("the server does not answer any more")
        return clients.tally, looks, unanswered, (before, tree_memory(server))


async def load(
    clients: Clients, waiting: set[asyncio.Task[None]], rng: np.random.Generator, seconds: float, bursts: bool
) -> None:
    """Queries at random moments, whatever becomes of them."""
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        burst = bursts and now % BURST_EVERY < min(BURST_SECONDS, seconds / 4)
        await asyncio.sleep(rng.exponential(1 / (BURST if burst else CALM)))
        if len(waiting) < OUTSTANDING:
            follow(waiting, asyncio.create_task(clients.query()))


def follow(waiting: set[asyncio.Task[None]], one: asyncio.Task[None]) -> None:
    """Until it ends."""
    waiting.add(one)
    one.add_done_callback(waiting.discard)


def tree_memory(server: psutil.Process) -> float:
    """MiB that are resident, of the process and its children."""
    everyone = [server, *server.children(recursive=True)]
    return float(sum(one.memory_info().rss for one in everyone)) / 2**20


async def keep_bombing(clients: Clients, waiting: set[asyncio.Task[None]]) -> None:
    """4 pictures are within every limit, 64 are not."""
    for count in (4, 64) * 10_000:
        await asyncio.sleep(BOMBS_EVERY)
        follow(waiting, asyncio.create_task(clients.bombs(count)))


async def keep_stopping(server: psutil.Process, rng: np.random.Generator, looks: Looks) -> None:
    """As when a virtual machine is paused."""
    while True:
        await asyncio.sleep(STOP_EVERY)
        looks.stops += 1
        server.suspend()
        try:
            await asyncio.sleep(rng.uniform(0.5, LONGEST_STOP))
        finally:
            server.resume()


async def keep_looking(clients: Clients, web: httpx.AsyncClient, looks: Looks) -> None:
    """Readiness and what is true, one after the other."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        ready = (await web.get("/readyz")).status_code == 200
        looks.seen[ready, await clients.probe()] += 1


async def keep_house(stub: ServingStub, registry: TaskRegistry, trunk: str) -> None:
    """New versions from another process, and a task that is registered and deleted again and again."""
    seed = 0
    while True:
        seed += 1
        await asyncio.to_thread(registry.register, GUESTS, made_task(seed), trunk, accuracy=0.5)
        await asyncio.sleep(2)
        await asyncio.to_thread(registry.register, "cats", made_task(seed), trunk, accuracy=0.9)
        await asyncio.sleep(2)
        if GUESTS in registry.active():
            await stub.DeleteTask(pb.DeleteTaskRequest(name=GUESTS))
        await asyncio.sleep(1)


if __name__ == "__main__":
    main()
