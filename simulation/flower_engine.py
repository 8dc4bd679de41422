"""Flower's own simulation runtime, started and stopped by the launcher.

One SuperLink on a free loopback port, one Flower run for all arms and seeds, and no daemon left behind: every process
that was started is ended by its pid, also after Ctrl-C or a crash. Flower's home, Ray's files and the logs live in a
temporary folder; telemetry, update checks and the per-run ``uv sync`` are off (``common/flower_cli.py`` says how).
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

import psutil

from fedstill.cloud_server.journal.event_log import EventTail
from fedstill.common.child_process import Child, family
from fedstill.common.cores import usable_cores
from fedstill.common.errors import RunError
from fedstill.common.flower_cli import FlowerError, environment, flwr, free_port, tool

CONNECTION = "fedstill"
START_SECONDS = 60.0
STATUS_SECONDS = 60.0
CHILD = "flower"
LOG_FILE = f"{CHILD}.log"
SIMULATION_PROCESS = "flwr-simulation"
"""Flower's name of the process in which the ServerApp of a simulation runs."""
LONGEST_HOME = 39
"""Ray keeps a socket 68 characters below this folder, and a socket's path may have 107."""


def run_flower(run_dir: Path, devices: int, concurrent_devices: int) -> None:
    """Run the whole plan of ``run_dir`` on Flower's simulation runtime; returns when it has finished.

    Raises:
        RunError: Flower did not start, or the run failed.
    """
    if len(tempfile.gettempdir()) + len("/fs-12345678") > LONGEST_HOME:
        raise RunError(
            f"{tempfile.gettempdir()}: too long a path for Ray's sockets; set TMPDIR to a shorter one"
        )
    events = EventTail(run_dir, from_end=True)
    with (
        tempfile.TemporaryDirectory(prefix="fs-", ignore_cleanup_errors=True) as home,
        _superlink(run_dir, Path(home)) as link,
    ):
        env = environment(Path(home))
        cores = usable_cores()
        share = max(1, cores // concurrent_devices)
        federation = f"num-supernodes={devices} init-args-num-cpus={cores} client-resources-num-cpus={share}"
        try:
            flwr(
                ["run", str(bundle()), CONNECTION, "--format", "json",
                 "--federation-config", federation,
                 "--run-config", f"run-dir='{run_dir}'"],
                env,
            )  # fmt: skip
            _wait(run_dir, events, link, env)
        except FlowerError as error:
            raise RunError(str(error)) from error


def _wait(run_dir: Path, events: EventTail, link: Child, env: dict[str, str]) -> None:
    """Wait until the event log says that the ServerApp is done; Flower itself is asked now and then, in case it ended
    without an event."""
    asked = time.monotonic()
    while True:
        # Asked before the events are read: what has ended by then has written its last event.
        ended = f"SuperLink ended unexpectedly; see {run_dir / LOG_FILE}" if link.poll() is not None else ""
        if not ended and time.monotonic() - asked > STATUS_SECONDS:
            status = json.loads(flwr(["list", CONNECTION, "--format", "json"], env))["runs"][0]["status"]
            if status.startswith("finished"):
                ended = f"runtime says {status}; see {run_dir / LOG_FILE}"
            asked = time.monotonic()
        for event in events.new():
            if event["event"] == "finished":
                return
            if event["event"] == "aborted":
                raise RunError(str(event["reason"]))
        if ended:
            raise RunError(f"Flower's {ended}")
        time.sleep(0.5)


@contextmanager
def _superlink(run_dir: Path, home: Path) -> Iterator[Child]:
    """Also ends the SuperLink of an earlier launcher on this run, which was killed and could not."""
    port = free_port()
    home.joinpath("config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n'
        f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    link, interrupted = Child(CHILD, run_dir), True
    link.start(
        [tool("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port),
         "--disable-runtime-dependency-installation"],
        environment(home), home,
    )  # fmt: skip
    try:
        _wait_until_open(port, link, run_dir)
        yield link
        interrupted = False
    finally:
        if interrupted and link.pid is not None:
            with suppress(psutil.NoSuchProcess):
                _kill_server_app(family(psutil.Process(link.pid)))
        link.stop()


def _kill_server_app(everyone: Iterable[psutil.Process]) -> None:
    """At once and before the devices, which it would otherwise take for failed ones: a resumed run asks them again."""
    for process in everyone:
        with suppress(psutil.NoSuchProcess):
            if any(SIMULATION_PROCESS in part for part in process.cmdline()):
                process.kill()


def _wait_until_open(port: int, link: Child, run_dir: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and link.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RunError(f"Flower's SuperLink did not start; see {run_dir / LOG_FILE}")


def bundle() -> Path:
    """The Flower app that every run submits."""
    with resources.as_file(resources.files("fedstill.simulation").joinpath("flower_app")) as path:
        return path
