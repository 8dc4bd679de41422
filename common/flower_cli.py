"""Calls of Flower's own commands, on either side: the program and its environment.

Telemetry, update checks and the per-run ``uv sync`` are off, and loopback never goes through a proxy of the
environment.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


class FlowerError(RuntimeError):
    """Flower could not be started, or refused a request; one line that says where to look."""


def tool(name: str) -> str:
    """A command of this Python environment, whatever PATH says."""
    return str(Path(sys.executable).with_name(name))


def environment(home: Path) -> dict[str, str]:
    """The environment of a Flower process whose configuration and extracted apps live in ``home``."""
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    direct = ",".join(filter(None, (direct, "127.0.0.1,localhost")))
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # Flower calls its tools
        "FLWR_HOME": str(home),
        "RAY_TMPDIR": str(home),
        # An optimiser makes this folder, else among the temporary files.
        "TORCHINDUCTOR_CACHE_DIR": str(home / "torch"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_LOG_LEVEL": "INFO",  # we read what it says
        "NO_PROXY": direct,
        "no_proxy": direct,
    }


def free_port() -> int:
    """A loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flwr(arguments: list[str], environment: dict[str, str]) -> str:
    """The output of ``flwr``.

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
