"""The environment of processes in which Flower waits less; see ``quick_flower/sitecustomize.py``."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
IMPORTROOT = TESTS.parent / "importroot"
HOOK = TESTS / "helpers" / "quick_flower"


def quick_environment(stock: bool = False) -> dict[str, str]:
    """Of this process, with one thread per process and this checkout's code; ``stock``: with Flower's own waits."""
    hook = [] if stock else [str(HOOK)]
    paths = [*hook, str(IMPORTROOT), os.environ.get("PYTHONPATH", "")]
    quick = {} if stock else {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1.0"}
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "KMP_BLOCKTIME": "0",
        **quick,
    }
