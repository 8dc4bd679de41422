"""What a full garbage collection costs a process that has imported what a server imports, and what is left of it once
the server has told the collector to pass over all that existed when it got ready. Every thread waits meanwhile.

    python benchmarks/serving/long_collections.py
"""

from __future__ import annotations

import gc
import importlib
import statistics
import time
from contextlib import suppress

from rich.console import Console

from fedstill.cloud_server.serving.engine.environment import without_long_collections
from fedstill.common.provenance import cpu_model

IMPORTS = ("fedstill.cloud_server.serving.app.serve_process", "fedstill.cloud_server.serving.app.load_models")
ROUNDS = 7


def main() -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    with suppress(ImportError):
        importlib.import_module("openvino")
    console = Console(highlight=False)
    console.print(f"{cpu_model()}, {len(gc.get_objects())} objects")
    console.print(f"a full collection: {_milliseconds():.1f} ms")
    with without_long_collections():
        console.print(f"as in a server that is ready: {_milliseconds():.3f} ms")


def _milliseconds() -> float:
    """Median."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        gc.collect()
        found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found)


if __name__ == "__main__":
    main()
