"""Replicas on Ray Serve of which one is killed under load: whether a request or the shared registry got lost.

A Ray cluster of two nodes on this machine, a front and two replicas with a small random ViT, so this is about what is
around the model. Six clients ask; in the middle one replica gets SIGKILL, while task versions are registered in the
shared registry all the time. Asked are: one answer or a named refusal for each request; answers equal to those of a
plain `fedstill serve`; a new replica that answers; a registry without a gap. Times here say nothing about throughput.

    python benchmarks/serving/replica_kill.py --markdown docs/results/replica_kill.md
    python benchmarks/serving/replica_kill.py --requests 40
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console

from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.common.atomic_files import replace_text
from fedstill.common.provenance import git_revision
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.ray_cluster import LOOPBACK, ray_cluster, replicas_below
from helpers.serve_process import LAYERS, SIZE, WIDTH, Place, make_place, serving
from helpers.vit import task

PICTURES = 8
SENDERS = 6
TOLERANCE = 1e-5
NAMED = (
    "the replica ended before it answered",
    "no replica runs",
    "no replica answered within",
)
"""What a refusal may say here."""
AGAIN_SECONDS = 120.0
Array = np.ndarray[Any, Any]
console = Console(highlight=False, soft_wrap=True)


@dataclass
class Seen:
    """Of the requests: answers by their picture, refusals by their text; wrong are answers with other logits."""

    answers: int = 0
    wrong: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    unnamed: list[str] = field(default_factory=list)
    after: int = 0


@dataclass(frozen=True)
class Report:
    """registered: versions meanwhile. whole: whether all of them are there and load. back: seconds until a new replica
    answered; None if none did."""

    requests: int
    seen: Seen
    registered: int
    whole: bool
    back: float | None

    @property
    def well(self) -> bool:
        """Whether nothing was lost."""
        seen = self.seen
        counted = seen.answers + seen.wrong + seen.refusals.total() + len(seen.unnamed)
        return (
            counted == self.requests
            and not (seen.wrong or seen.unnamed)
            and self.whole
            and self.back is not None
        )

    def lines(self) -> list[str]:
        """The table."""
        seen = self.seen
        refused = "; ".join(f"{count} x {text}" for text, count in seen.refusals.items()) or "none"
        rows = (
            ("requests", str(self.requests)),
            ("answered, as by a plain server", str(seen.answers)),
            ("answered otherwise", str(seen.wrong)),
            ("refused by name", refused),
            ("neither", "; ".join(seen.unnamed) or "none"),
            (
                "versions registered meanwhile",
                f"{self.registered}, {'all whole' if self.whole else 'NOT WHOLE'}",
            ),
            ("a new replica answered", "never" if self.back is None else "yes"),
        )
        return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def picture(number: int) -> Array:
    """One of ``PICTURES``, uint8 (1, side, side, 3)."""
    made: Array = np.random.default_rng(number).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    return made


def ask(stub: GRPCInferenceServiceStub, number: int) -> Array:
    """Its logits. Raises RpcError for a refusal."""
    asked = pb.ModelInferRequest(model_name="cats", raw_input_contents=[picture(number).tobytes()])
    asked.inputs.add(name="pixels", datatype="UINT8", shape=[1, SIZE, SIZE, 3])
    asked.parameters["latency_ms"].int64_param = 30_000
    answer = stub.ModelInfer(asked)
    place = [one.name for one in answer.outputs].index("logits")
    return np.frombuffer(answer.raw_output_contents[place], "<f4")


def stub_of(target: str) -> GRPCInferenceServiceStub:
    """A client of its own connection."""
    return GRPCInferenceServiceStub(grpc.insecure_channel(target))  # type: ignore[no-untyped-call]


def plain_answers(place: Place) -> list[Array]:
    """Of ``fedstill serve`` alone."""
    with serving(place, *place.profile, "--insecure") as server:
        client = stub_of(server.target)
        answers = [ask(client, number) for number in range(PICTURES)]
        server.end()  # it takes its file away
    return answers


def send(
    target: str, numbers: Sequence[int], wanted: Sequence[Any], seen: Seen, lock: threading.Lock
) -> None:
    """One sender's requests, one after the other."""
    client = stub_of(target)
    for number in numbers:
        try:
            logits = ask(client, number % PICTURES)
        except grpc.RpcError as error:
            text = str(error.details())
            named = next((one for one in NAMED if one in text), None)
            with lock:
                if named is None:
                    seen.unnamed.append(text)
                else:
                    seen.refusals[named] += 1
            continue
        close = np.allclose(logits, wanted[number % PICTURES], rtol=TOLERANCE, atol=TOLERANCE)
        with lock:
            seen.answers += close
            seen.wrong += not close


class Registering(threading.Thread):
    """Registers versions of a task of another trunk, so that nothing that is served changes."""

    def __init__(self, registry: TaskRegistry) -> None:
        super().__init__(daemon=True)
        self._registry, self.done, self.stopped = registry, 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            made = task(2, self.done, prompts=(), layers=LAYERS, width=WIDTH)
            self._registry.register("busy", made, "f" * 64)
            self.done += 1


def measure(requests: int, folder: Path) -> Report:
    """All of it, with files below ``folder``."""
    place = make_place(folder)
    wanted = plain_answers(place)
    shared = f"sqlite:///{place.state / 'registry.sqlite'}"
    seen, lock = Seen(), threading.Lock()
    registry = TaskRegistry(place.state, shared)
    os.environ.update(LOOPBACK)
    with ray_cluster(2) as address:
        options = ("--insecure", "--ray", address, "--replicas", "2", "--database", shared)
        with serving(place, *place.profile, *options) as server, ThreadPoolExecutor(SENDERS) as pool:
            before = {one.pid for one in replicas_below(address)}
            console.print(f"{len(before)} replicas; {requests} requests, one is killed in the middle")
            registering = Registering(registry)
            registering.start()
            parts = [range(first, requests, SENDERS) for first in range(SENDERS)]
            waiting = [pool.submit(send, server.target, part, wanted, seen, lock) for part in parts]
            while seen.answers < requests // 2 and not all(one.done() for one in waiting):
                time.sleep(0.005)
            os.kill(min(before), signal.SIGKILL)
            for one in waiting:
                one.result()
            back = _new_replica(server.target, place, address, before)
            registering.stopped.set()
            registering.join()
    versions = registry.versions("busy")
    whole = [one.version for one in versions] == list(range(1, registering.done + 1))
    for version in versions:
        registry.load(version)
    registry.close()
    return Report(requests, seen, registering.done, whole, back)


def _new_replica(target: str, place: Place, address: str, before: set[int]) -> float | None:
    """Seconds until a replica that was not there before has answered: its decision log says so."""
    began = time.monotonic()
    client = stub_of(target)
    logs = place.state / "serve" / "replicas"
    while time.monotonic() < began + AGAIN_SECONDS:
        ask(client, 0)
        new = {one.pid for one in replicas_below(address)} - before
        if new and sum(log.stat().st_size > 0 for log in logs.glob("*.jsonl")) > len(before):
            return time.monotonic() - began
        time.sleep(0.2)
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Ends with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = measure(asked.requests, Path(folder))
    text = "\n".join(report.lines())
    console.print(text)
    if asked.markdown is not None:
        head = (
            "# A replica on Ray Serve is killed\n\n"
            "`python benchmarks/serving/replica_kill.py --markdown docs/results/replica_kill.md`, part of `make soak`."
            "\nTwo Ray nodes on one machine, two replicas, SIGKILL for one after half of the requests. "
            f"Revision {git_revision()}.\n\n"
        )
        replace_text(asked.markdown, head + text + "\n")
    sys.exit(0 if report.well else 1)


if __name__ == "__main__":
    main()
