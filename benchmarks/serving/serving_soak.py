"""A live server under stress of all kinds: bursts, vanishing clients, hot swaps, deletions, bad images, no time.

`fedstill serve` runs as its own process with a small random ViT; the test is about the server around it. Every
request must get exactly one answer, the server must still answer at the end, and its memory must stay flat.

    python benchmarks/serving/serving_soak.py                 # ten minutes
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
from io import BytesIO
from pathlib import Path

import grpc
import numpy as np
import psutil
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, profile_to_plain
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.protos import serving_pb2 as pb
from fedstill.protos.serving_pb2_grpc import ServingStub

ARCHITECTURE, WIDTH = "test_vit", 64  # timm's own tiny ViT for tests, 160 pixels
TASKS = ("cats", "dogs")
CALM, BURST = 30.0, 600.0
"""Requests per second between and in bursts."""
BURST_EVERY, BURST_SECONDS = 60.0, 30.0
VANISHING = 0.1
"""Share of the clients that leave before their answer."""
OUTSTANDING = 4000
console = Console()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=600.0)
    arguments.add_argument("--policy", default="fedstill")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        registry, trunk = prepare(place)
        process, port = start(place, options.policy)
        try:
            asyncio.run(soak(process, port, registry, trunk, options.seconds))
            process.send_signal(signal.SIGTERM)
            console.print(f"exit code after SIGTERM: {process.wait(60)}")
        finally:
            if process.poll() is None:
                process.kill()


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


def start(place: Path, policy: str) -> tuple[subprocess.Popen[bytes], int]:
    command = [sys.executable, "-c", "from fedstill.cli.main import main; main()", "serve"]
    command += ["--state", str(place / "tasks"), "--weights", str(place / "test_vit.safetensors")]
    command += ["--profile", str(place / "profile.json"), "--insecure", "--listen", "127.0.0.1:0"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--policy", policy], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=log
        )
    ready = place / "tasks" / "serve" / "server.json"
    while not ready.exists():
        if process.poll() is not None:
            raise SystemExit((place / "log").read_text())
        time.sleep(0.1)
    return process, json.loads(ready.read_text())["port"]


async def soak(
    process: subprocess.Popen[bytes], port: int, registry: TaskRegistry, trunk: str, seconds: float
) -> None:
    server, rng = psutil.Process(process.pid), np.random.default_rng(0)
    images = [made_image(rng) for _ in range(16)]
    answers: Counter[str] = Counter()
    memory: list[tuple[float, float]] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ServingStub(channel)  # type: ignore[no-untyped-call]
        began, waiting, asked = time.monotonic(), set[asyncio.Task[None]](), 0
        housekeeping = asyncio.create_task(keep_house(stub, registry, trunk))
        while (now := time.monotonic() - began) < seconds:
            burst = now % BURST_EVERY < min(BURST_SECONDS, seconds / 4)
            await asyncio.sleep(rng.exponential(1 / (BURST if burst else CALM)))
            if len(waiting) < OUTSTANDING:
                one = asyncio.create_task(ask(stub, made_request(images, rng), rng.random(), answers))
                waiting.add(one)
                one.add_done_callback(waiting.discard)
                asked += 1
            if not memory or now - memory[-1][0] > 1:
                memory.append((now, server.memory_info().rss / 2**20))
        housekeeping.cancel()
        unanswered = len((await asyncio.wait(waiting, timeout=60))[1]) if waiting else 0
        last = await stub.MakeQuery(pb.MakeQueryRequest(task="cats", image=images[0], latency_ms=20_000))
    third = [rss for at, rss in memory if seconds / 3 < at < 2 * seconds / 3]
    end = [rss for at, rss in memory if at >= 2 * seconds / 3]
    console.print(
        f"{asked} requests in {seconds:g} s: "
        + ", ".join(f"{count} {code}" for code, count in answers.most_common())
    )
    console.print(
        f"without an answer: {unanswered}; answers and requests differ by {asked - answers.total()}"
    )
    console.print(
        f"memory, medians of the second and the last third: {np.median(third):.0f}, {np.median(end):.0f} MiB"
    )
    console.print(f"still answers: {last.label!r}", highlight=False)


def made_image(rng: np.random.Generator) -> bytes:
    file = BytesIO()
    Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def made_request(images: list[bytes], rng: np.random.Generator) -> pb.MakeQueryRequest:
    """Mostly a valid request; now and then damaged, for a task that comes and goes, or with no time at all."""
    image = images[rng.integers(len(images))]
    if rng.random() < 0.02:
        image = image[: len(image) // 2]
    task = "guests" if rng.random() < 0.1 else TASKS[rng.integers(len(TASKS))]
    latency = 0.0 if rng.random() < 0.02 else float(rng.choice((50, 200, 1000)))
    return pb.MakeQueryRequest(task=task, image=image, latency_ms=latency, utility=float(rng.random()))


async def ask(stub: ServingStub, request: pb.MakeQueryRequest, outcome: float, answers: Counter[str]) -> None:
    call = stub.MakeQuery(request)
    if outcome < VANISHING:
        await asyncio.sleep(outcome)
        call.cancel()
    code = await call.code()
    answers[code.name] += 1


async def keep_house(stub: ServingStub, registry: TaskRegistry, trunk: str) -> None:
    """New versions from another process, and a task that is registered and deleted again and again."""
    seed = 0
    while True:
        seed += 1
        await asyncio.to_thread(registry.register, "guests", made_task(seed), trunk, accuracy=0.5)
        await asyncio.sleep(2)
        await asyncio.to_thread(registry.register, "cats", made_task(seed), trunk, accuracy=0.9)
        await asyncio.sleep(2)
        if "guests" in registry.active():
            await stub.DeleteTask(pb.DeleteTaskRequest(name="guests"))
        await asyncio.sleep(1)


if __name__ == "__main__":
    main()
