"""What a serving process is, for its metrics: dashboards tell replicas of another version or machine apart by it."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from fedstill.common.provenance import cpu_model


def build_info() -> dict[str, str]:
    """Versions of fedstill, Python and torch, the processor's name, and how many threads torch computes with."""
    return {
        "version": version("fedstill"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "threads": str(torch.get_num_threads()),
    }
