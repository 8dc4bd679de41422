"""Flower's own command line, called as a child; its failures in one line."""

from __future__ import annotations

import subprocess

from fedstill.protos.flower_cli import tool


class FlowerError(RuntimeError):
    """Flower could not be started, or refused what was asked; one line that says where to look."""


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
