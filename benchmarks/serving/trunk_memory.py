"""What loading and unloading a trunk does to a real process: its memory, the time it takes, and how others feel it.

In a process with the environment of a server, one trunk answers batches of one image without a pause, as the engine's
thread does. Beside it a second one is loaded and unloaded again and again by the thread that loads trunks. Memory is
the resident set of the process. Weights are random.

    python benchmarks/serving/trunk_memory.py --markdown docs/results/trunk_memory.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import timm
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.environment import serving_environment
from fedstill.cloud_server.serving.engine.memory_limit import resident_bytes
from fedstill.cloud_server.serving.engine.openvino_library import load_library
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.server.free_memory import trim_heap
from fedstill.cloud_server.serving.server.loadable_engine import LoadableEngine
from fedstill.common.atomic_files import replace_text
from fedstill.common.provenance import cpu_model, hardware
from fedstill.models.vit.schedules import constant_schedule
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.models.vit.without_weights import weight_bytes, without_weights

Backend = Literal["torch", "openvino"]
BACKENDS: tuple[Backend, ...] = ("torch", "openvino")
OTHER, DELTAS, SWITCH_SECONDS = "vit_tiny_patch16_224", (0, -4, -8), 2e-5
"""The trunk that goes on answering; schedules; as in ``serve_process.py``."""


def random_file(folder: Path, architecture: str) -> Path:
    torch.manual_seed(0)
    file = folder / f"{architecture}.safetensors"
    save_file(
        {name: one.contiguous() for name, one in timm.create_model(architecture).state_dict().items()}, file
    )
    return file


def loadable(file: Path, backend: Backend) -> tuple[LoadableEngine, int]:
    """And the bytes of its weights."""
    trunk = load_trunk(file)
    net = without_weights(trunk.net)
    width, size = net.width, weight_bytes(net)
    head = TaskParameters(("a", "b"), torch.randn(2, width), torch.zeros(2), {}, net.preprocess)
    schedules = tuple(constant_schedule(delta, net.layers) for delta in DELTAS)
    settings = EngineSettings(schedules, (1, 4), "cpu", "fp32", backend, f"{backend} fp32")

    def make(tasks: dict[str, TaskParameters], chosen: EngineSettings, progress: Any) -> Engine:
        engine = Engine(load_trunk(file).net, tasks, chosen)
        engine.warm_up(progress)
        return engine

    return LoadableEngine(net, settings, {"task": head}, make), size


class Answering:
    """The other trunk: batches of one image, one after the other, in a thread."""

    def __init__(self, engine: LoadableEngine) -> None:
        self._engine = engine
        self._ending, self._seconds = threading.Event(), list[float]()
        self._image = torch.randn(1, 3, engine.net.image_size, engine.net.image_size)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def taken(self) -> list[float]:
        """Milliseconds of each batch since the last call."""
        found, self._seconds = self._seconds, []
        return [1e3 * one for one in found]

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        schedule = self._engine.settings.schedules[0]
        while not self._ending.is_set():
            began = time.perf_counter()
            self._engine.infer(self._image, ["task"], schedule)
            self._seconds.append(time.perf_counter() - began)


def measure(architecture: str, backend: Backend, rounds: int) -> dict[str, Any]:
    """In this process."""
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(1)
    load_library()
    with tempfile.TemporaryDirectory() as folder:
        other, _ = loadable(random_file(Path(folder), OTHER), backend)
        mine, weights = loadable(random_file(Path(folder), architecture), backend)
        other.load()
        answering = Answering(other)
        time.sleep(1.0)
        found: dict[str, Any] = {"weights": weights, "loaded": [], "unloaded": [], "seconds": [], "said": []}
        quiet, loading = list[float](), list[float]()
        trim_heap()
        found["before"] = resident_bytes()
        for _ in range(rounds):
            answering.taken()
            time.sleep(2.0)
            quiet += answering.taken()
            footprint = mine.load()
            loading += answering.taken()
            found["loaded"].append(resident_bytes())
            found["seconds"].append(footprint.seconds)
            found["said"].append(footprint.bytes)
            mine.unload()
            found["unloaded"].append(resident_bytes())
        answering.end()
    found["quiet"] = [median(quiet), max(quiet)]
    found["loading"] = [median(loading), max(loading)]
    return found


def in_a_server(architecture: str, backend: Backend, rounds: int) -> dict[str, Any]:
    """In a process with the environment of a server."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", backend, "--architecture", architecture, "--rounds", str(rounds)],
        env=serving_environment(os.environ) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(architecture: str, results: dict[Backend, dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    head = (
        "backend", "weights", "before", "loaded", "unloaded", "measured as", "load",
        "other trunk's batch: quiet (worst)", "while loading (worst)",
    )  # fmt: skip

    def mb(values: Sequence[float] | float) -> str:
        several = values if isinstance(values, Sequence) else [values]
        return ", ".join(f"{one / 1e6:.0f}" for one in several) + " MB"

    def ms(pair: Sequence[float]) -> str:
        return f"{pair[0]:.0f} ms ({pair[1]:.0f} ms)"

    return head, [
        [
            f"{backend}, {architecture}",
            *(mb(one[name]) for name in ("weights", "before", "loaded", "unloaded", "said")),
            ", ".join(f"{seconds:.1f}" for seconds in one["seconds"]) + " s",
            ms(one["quiet"]),
            ms(one["loading"]),
        ]
        for backend, one in results.items()
    ]


def report(head: Sequence[str], body: Sequence[Sequence[str]], note: str) -> str:
    """As Markdown."""
    lines = ["| " + " | ".join(one) + " |" for one in (head, ["---"] * len(head), *body)]
    return (
        "# Loading and unloading a trunk\n\n"
        "<!-- written by benchmarks/serving/trunk_memory.py -->\n\n"
        "Memory of the process before a trunk is loaded, while it is, and after it was unloaded, round by\n"
        "round; what the server notes as its size; and how long a batch of another trunk takes meanwhile,\n"
        "in the median and at worst.\n\n" + "\n".join(lines) + f"\n\n{note}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--note", default="", help="A sentence on the machine's other load, for the report.")
    parser.add_argument("--child", choices=BACKENDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(measure(options.architecture, options.child, options.rounds)))
        return
    results = {one: in_a_server(options.architecture, one, options.rounds) for one in BACKENDS}
    head, body = rows(options.architecture, results)
    table = Table(*head)
    for row in body:
        table.add_row(*row)
    Console(width=200).print(table)
    libraries = f"torch {version('torch')}, OpenVINO {version('openvino')}"
    note = f"{hardware()}, {cpu_model()}, one thread, {len(DELTAS)} schedules, {libraries}. {options.note}".strip()
    if options.markdown:
        replace_text(options.markdown, report(head, body, note))


if __name__ == "__main__":
    main()
