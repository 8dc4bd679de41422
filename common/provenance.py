"""The origin of numbers: machine and revision, written beside every result."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from fedstill.common.cores import usable_cores


def hardware() -> str:
    """Machine, cores and GPU on one line."""
    import torch

    cores = usable_cores()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{platform.machine()}, {cores} cores{gpu}"


def git_revision() -> str:
    """The revision of this checkout, with ``-dirty`` if files differ from it; ``unknown`` outside of git."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"
