"""What the page of a server costs: bytes for a browser, and processor time for the server.

A real dispatcher, policy, recorder and web app in this process; the engine is a sleep, as if a GPU computed. Viewers
are another process that reads ``/events`` and asks ``/history`` for new rows, as the page does. Blocks without and with
viewers take turns. So many queries wait at any time that all batches are full; the engine's thread (it decides, and
runs the observers) is measured by its own processor time.

    python benchmarks/serving/page_load.py
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import uvicorn
from rich.console import Console

from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.monitoring.monitor import Monitor
from fedstill.cloud_server.serving.monitoring.web import make_app
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.requests import Response
from fedstill.cloud_server.serving.server.served_tasks import TrunkState
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics
from fedstill.common.provenance import cpu_model

TASKS = ("cats", "dogs", "cars")
SECONDS_PER_IMAGE, BATCH = 0.002, 32
LATENCY_SECONDS = 5.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--viewers", type=int, default=10)
    arguments.add_argument("--seconds", type=float, default=5.0, help="of a block")
    arguments.add_argument("--pairs", type=int, default=6)
    arguments.add_argument("--view", default="", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.view:
        view(options.view, options.viewers)
        return
    with Served() as served:
        served.ask(2.0)
        alone, watched = [], []
        for _ in range(options.pairs):
            alone.append(served.ask(options.seconds))
            with Viewers(served.address, options.viewers) as viewers:
                watched.append(served.ask(options.seconds))
        received = viewers.received
    console = Console(highlight=False, width=140)
    console.print(
        f"{cpu_model()}; {len(TASKS)} tasks, {options.pairs} pairs of blocks of {options.seconds:g} s"
    )
    console.print(
        f"a browser receives {received['event']:.0f} bytes a second as events and {received['row']:.0f} as new rows; "
        f"{received['first']:.0f} once for five minutes"
    )
    for name, blocks in (("no viewer", alone), (f"{options.viewers} viewers", watched)):
        console.print(
            f"{name:<11} engine's thread {1e6 * median(one.engine for one in blocks):6.1f} us of processor time per "
            f"query (batches of {median(one.batch for one in blocks):.1f}), "
            f"process {1e3 * median(one.process for one in blocks):6.1f} ms per second"
        )


class Served:
    """A dispatcher with a page, in this process."""

    def __init__(self) -> None:
        schedules = (Schedule("0", 0, 0.0, SECONDS_PER_IMAGE, (0.9,) * len(TASKS), BATCH),)
        metrics, self._monitor = ServingMetrics("fedstill", tasks=lambda: TASKS), Monitor("fedstill")
        self._preparing = ThreadPoolExecutor(2)
        policy = make_policy("fedstill", Profile("made", "by hand", TASKS, schedules))
        self.dispatcher = Dispatcher(
            policy, self._infer, self._preparing, (metrics, self._monitor.recorder), 1024
        )
        self._app = make_app(metrics, lambda: True, monitor=self._monitor)
        trunk = SimpleNamespace(name="", fingerprint="0" * 64, image_size=224)
        tasks = {
            name: SimpleNamespace(
                name=name, version=1, trunk=trunk.fingerprint, latency_ms=500.0, utility=1.0, created=""
            )
            for name in TASKS
        }
        served: Any = SimpleNamespace(
            served=tasks, trunks={trunk.fingerprint: trunk}, states={trunk.fingerprint: TrunkState()}
        )
        self._monitor.serve(self.dispatcher, served)
        self._engine_time, self._batches = 0.0, 0
        self._room = threading.Semaphore(3 * BATCH)
        self._asked = 0

    def __enter__(self) -> Served:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._web = uvicorn.Server(uvicorn.Config(self._app, log_config=None, access_log=False, ws="none"))
        self._thread = threading.Thread(target=self._web.run, kwargs={"sockets": [listener]})
        self._thread.start()
        self.dispatcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.dispatcher.stop()
        self._preparing.shutdown()
        self._app.state.closing = self._web.should_exit = True
        self._thread.join()

    def ask(self, seconds: float) -> SimpleNamespace:
        """Processor seconds of the engine's thread per query, and of the process per second; queries per batch."""
        began, process = time.perf_counter(), time.process_time()
        engine, batches, asked = self._engine_time, self._batches, self._asked
        while time.perf_counter() - began < seconds:
            if self._room.acquire(timeout=0.1):
                task = TASKS[self._asked % len(TASKS)]
                self._asked += 1
                tell = partial(self._answered, task, time.perf_counter())
                self.dispatcher.submit(task, [_image], LATENCY_SECONDS, 1.0, tell)
        passed, queries = time.perf_counter() - began, self._asked - asked
        return SimpleNamespace(
            engine=(self._engine_time - engine) / queries,
            process=(time.process_time() - process) / passed,
            batch=queries / (self._batches - batches),
        )

    def _answered(self, task: str, came: float, outcome: object) -> None:
        self._room.release()
        if isinstance(outcome, Response):
            self._monitor.recorder.took(task, time.perf_counter() - came)

    def _infer(self, images: Sequence[Any], tasks: Sequence[str], schedule: str) -> list[Prediction]:
        self._engine_time = time.thread_time()
        self._batches += 1
        time.sleep(SECONDS_PER_IMAGE * len(images))
        return [Prediction(np.zeros(2, dtype=np.float32), ("a", "b"))] * len(images)


def _image() -> object:
    return None


class Viewers:
    """Browsers, in a process of their own."""

    def __init__(self, address: str, count: int) -> None:
        self._command = [sys.executable, __file__, "--view", address, "--viewers", str(count)]
        self.received: dict[str, float] = {}

    def __enter__(self) -> Viewers:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # all of them are connected
        return self

    def __exit__(self, *_: object) -> None:
        said, _nothing = self._process.communicate("end\n", timeout=60)
        self.received = json.loads(said)


def view(address: str, count: int) -> None:
    """Watch until a line comes; then print the mean bytes of an event, of an answer with new rows, of a first one."""
    sizes: dict[str, list[int]] = {"event": [], "row": [], "first": []}
    connected, end = threading.Barrier(count + 1), threading.Event()

    def watch() -> None:
        asked = 0
        with httpx.Client(base_url=address, timeout=30) as client, client.stream("GET", "/events") as stream:
            connected.wait()
            for line in stream.iter_lines():
                if end.is_set():
                    return
                if not line.startswith("data: "):
                    continue
                rows = httpx.get(f"{address}/history", params={"after": asked})
                sizes["row" if asked else "first"].append(len(rows.content))
                sizes["event"].append(len(line))
                asked = rows.json()["next"]

    threads = [threading.Thread(target=watch) for _ in range(count)]
    for one in threads:
        one.start()
    connected.wait()
    tell("connected")
    sys.stdin.readline()
    end.set()
    for one in threads:
        one.join()
    tell(json.dumps({name: sum(some) / max(1, len(some)) for name, some in sizes.items()}))


def tell(line: str) -> None:
    """To the process that started this one."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
