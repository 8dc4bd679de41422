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


def cpu_model() -> str:
    """The processor's name as Linux has it, or what Python knows of it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux' words, such as ``avx2``; empty where nothing says so."""
    return frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    """Of the first core; empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def git_revision() -> str:
    """The revision of this checkout, with ``-dirty`` if files differ from it; ``unknown`` outside of git."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"
