"""What every process launcher of the cloud needs: a free port, Flower's command line, the end of a process family."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterable

import psutil

from fedstill.protos.flower_cli import tool

STOP_SECONDS = 10.0


class FlowerError(RuntimeError):
    """Flower could not be started, or refused what was asked; one line that says where to look."""


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flwr(arguments: list[str], environment: dict[str, str]) -> str:
    """What ``flwr`` printed.

    Raises:
        FlowerError: it ended with an error; its last line.
    """
    done = subprocess.run(
        [tool("flwr"), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise FlowerError(f"flwr {arguments[0]} failed: {said[-1]}")
    return done.stdout


def family(head: psutil.Process) -> list[psutil.Process]:
    """A process and everything below it, youngest first; empty if it is gone."""
    try:
        return [*head.children(recursive=True), head]
    except psutil.NoSuchProcess:
        return []


def end(processes: Iterable[psutil.Process]) -> None:
    """End these processes, each by its pid, first politely, then surely."""
    told = list(processes)
    for process in told:
        _signal(process, "terminate")
    _, alive = psutil.wait_procs(told, timeout=STOP_SECONDS)
    for process in alive:
        _signal(process, "kill")


def _signal(process: psutil.Process, how: str) -> None:
    try:
        getattr(process, how)()  # psutil checks the start time: a pid that was given again is not touched
    except psutil.NoSuchProcess:
        return
