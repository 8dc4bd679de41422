"""The coordinator's cost per device and outer round, from 20 to 200 devices: all but training and the devices' work.

The real ServerApp, journal, node registry, downlink and codec serve the requested number of devices, over the
in-process grid, so that neither Ray nor 200 Python processes compete for the machine. Devices answer at once with
made-up prototypes and counts. Time in ``Distiller.run`` and in the devices is subtracted; the rest is the coordinator's
own: sending, receiving, decoding, selecting, journalling, checkpointing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from rich.console import Console

from fedstill.cloud_server.distillation.compute import use_threads
from fedstill.cloud_server.distillation.distiller import Distiller
from fedstill.cloud_server.distillation.run_plan import RunPlan, read_plan, write_plan
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.server_app import run_plan
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.journal import open_journal
from fedstill.edge_client.node.client_app import app as real_app
from fedstill.protos.messages import (
    EvaluationRequest,
    EvaluationResult,
    PrototypeRequest,
    PrototypeUpload,
)
from fedstill.protos.records import decode, encode
from fedstill.simulation.config import load_experiment
from fedstill.simulation.inprocess import InProcessGrid
from fedstill.simulation.launcher import prepare_run

SMALL = [
    "dataset.public_per_class=10", "dataset.private_per_class=2", "teacher.epochs=1", "student.epochs=1",
    "distillation.inner_epochs=1", "fedstill.inner_epochs=1", 'run.scenarios=["latency_sensitive"]',
]  # fmt: skip
ROUNDS = 3
CLIPS = 40


class QuickDevices(ClientApp):
    """Devices that know their answer at once."""

    def __call__(self, message: Message, context: Context) -> Message:
        action = message.metadata.message_type
        rng = np.random.default_rng(int(str(context.node_config["partition-id"])))
        if action == "query.prototypes":
            request = decode(PrototypeRequest, message.content)
            names = request.student.class_names
            rows = rng.dirichlet(np.ones(len(names)), 5).astype(np.float32)
            rows /= rows.sum(axis=1, keepdims=True)
            reply: object = PrototypeUpload(request.job, rows, np.full(5, CLIPS // 5, np.int64), names)
        elif action == "evaluate.student":
            asked = decode(EvaluationRequest, message.content)
            reply = EvaluationResult(asked.job, int(rng.integers(CLIPS)), CLIPS, 0.0, 4096)
        else:
            return real_app(message, context)
        return Message(encode(reply), reply_to=message)


@dataclass
class Clock:
    """Seconds spent in something, summed over threads."""

    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, with its CPU seconds added up."""

        def run(*arguments: Any, **options: Any) -> Any:
            started = time.thread_time()
            try:
                return work(*arguments, **options)
            finally:
                with self._lock:
                    self.seconds += time.thread_time() - started

        return run


@dataclass(frozen=True)
class Outcome:
    """One size of fleet."""

    devices: int
    served: int
    overhead_ms: float
    training_ms: float
    seconds: float


def serve(base: Path, devices: int) -> Outcome:
    """All devices of one plan; CPU milliseconds per device and outer round (the last one is the evaluation)."""
    run_dir = base.parent / f"run{devices}"
    shutil.copytree(base, run_dir)
    plan: RunPlan = replace(
        read_plan(base), work=str(run_dir), public=str(run_dir / "public"), clients=devices
    )
    write_plan(plan)
    training, handling = Clock(), Clock()
    original_run, original_answer = Distiller.run, InProcessGrid._answer
    Distiller.run = training.timed(original_run)  # type: ignore[method-assign]
    InProcessGrid._answer = handling.timed(original_answer)  # type: ignore[method-assign]
    metrics = Metrics(run_dir)
    started, cpu = time.monotonic(), time.process_time()
    try:
        grid = InProcessGrid(QuickDevices(), devices, {"run-dir": str(run_dir)})
        run_plan(plan, Exchange(grid, plan.reply_timeout), metrics)
    finally:
        metrics.close()
        Distiller.run, InProcessGrid._answer = original_run, original_answer  # type: ignore[method-assign]
    spent = time.process_time() - cpu - training.seconds - handling.seconds
    journal = open_journal(run_dir)
    served = len(journal.jobs())
    journal.close()
    shutil.rmtree(run_dir)
    per_round = 1000 / (devices * (ROUNDS + 1))
    return Outcome(
        devices, served, spent * per_round, training.seconds * per_round, time.monotonic() - started
    )


def prepare(folder: Path) -> Path:
    """A run whose shared models are trained, so that only devices' jobs are left."""
    base = folder / "base"
    overrides = [*SMALL, f"distillation.outer_epochs={ROUNDS}", f"fedstill.outer_epochs={ROUNDS}"]
    prepare_run(load_experiment("quickstart", overrides), base, Console(quiet=True))
    plan = replace(read_plan(base), arms=("all_distill_select_cluster",), teacher_reference=False)
    write_plan(plan)
    metrics = Metrics(base)
    use_threads(1)
    seed_cloud = SeedCloud(plan, plan.seeds[0], metrics)
    _ = seed_cloud.bank, seed_cloud.all_distill
    metrics.close()
    return base


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="2 and 4 devices, once")
    options = parser.parse_args(arguments)
    sizes, repeats = ([2, 4], 1) if options.quick else (options.devices, options.repeats)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        base = prepare(Path(folder))
        found: dict[int, list[Outcome]] = {size: [] for size in sizes}
        for _ in range(repeats):  # interleaved, so that a busy moment hits all sizes
            for size in sizes:
                found[size].append(serve(base, size))
    console.print("devices  served  coordinator CPU ms per device and round  training CPU ms  wall s")
    medians = {}
    for size, outcomes in found.items():
        medians[size] = statistics.median(one.overhead_ms for one in outcomes)
        trained = statistics.median(one.training_ms for one in outcomes)
        seconds = statistics.median(one.seconds for one in outcomes)
        served = min(one.served for one in outcomes)
        console.print(f"{size:7d}  {served:6d}  {medians[size]:40.1f}  {trained:15.1f}  {seconds:6.1f}")
    console.print(
        f"ratio of overhead, {sizes[-1]} to {sizes[0]} devices: {medians[sizes[-1]] / medians[sizes[0]]:.2f}"
    )


if __name__ == "__main__":
    main()
