"""A Ray cluster for a test, and the replicas in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

needs_ray = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("ray", "aiohttp", "fastapi")),
    reason="Ray Serve is not installed: pip install '.[ray]'",
)


LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""The first keeps Ray on 127.0.0.1, which it otherwise takes for a mistake and replaces by the machine's address."""


@contextmanager
def ray_cluster(nodes: int) -> Iterator[str]:
    """The address of a head; all is gone at the end."""
    program = [sys.executable, str(Path(__file__).parent / "ray_nodes.py"), str(nodes)]
    process = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | LOOPBACK
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = ""
        for line in process.stdout:
            if line.startswith("127.0.0.1:"):
                address = line.strip()
                break
        assert address, "no Ray cluster has started"
        yield address
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            for one in [*children, psutil.Process(process.pid)] if process.poll() is None else children:
                if one.is_running():
                    one.kill()
            process.stdout.close()


def replicas_below(address: str) -> list[psutil.Process]:
    """The processes of replicas on the nodes of that cluster."""
    port = address.rpartition(":")[2]
    found = []
    for one in psutil.process_iter(["cmdline"]):
        line = " ".join(one.info["cmdline"] or ())
        if "ServeReplica:fedstill" in line and port in _environment(one):
            found.append(one)
    return found


def _environment(process: psutil.Process) -> str:
    try:
        parents = process.parents()
        return " ".join(word for one in parents for word in one.cmdline())
    except psutil.Error:
        return ""
