"""The process environment in which the engine is fastest on a CPU; set by the starting process.

glibc and oneDNN read these once, before any of our code runs, so a running process cannot set them for itself:
launchers pass :func:`serving_environment` to the process that they start. What Python itself is told stands here,
too. This file imports no torch.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fedstill.cloud_server.serving.engine.memory_limit import limit_bytes

SWITCH_SECONDS = 2e-5
"""How long a thread may keep the interpreter while another waits for it. Every operator of a batch takes it again, so
at Python's 5 ms a busy event loop makes a batch tens of times slower (benchmarks/serving/serving_switching.py)."""


def keep_what_exists() -> None:
    """Have garbage collections pass over all that exists now: modules, functions, models. Some 400,000 objects are the
    imports' alone; a look at all of them stops every thread for 0.2 s (benchmarks/serving/long_collections.py).

    What is no longer referred to is freed as before, and cycles among later objects are collected.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def without_long_collections() -> Iterator[None]:
    """The same within a block, for who measures; nothing more in a process that keeps what exists for good."""
    kept = gc.get_freeze_count() > 0
    keep_what_exists()
    try:
        yield
    finally:
        if not kept:
            gc.unfreeze()


def kept_kernels(number: int) -> dict[str, str]:
    """The settings with which oneDNN keeps so many."""
    return dict.fromkeys(("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), str(number))


CPU_SETTINGS: Mapping[str, str] = {
    # Otherwise activations of tens of megabytes are mapped and unmapped again for every operator, page by page.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000000",
    # oneDNN's own number. An elastic server cycles through more (schedule, batch) shapes, and keeps as many as fit
    # (``cached_kernels``); of replicas on Ray nobody knows how many share a machine, so they keep these.
    **kept_kernels(1024),
    # Idle OpenMP threads must not spin beside the threads that serve requests.
    "KMP_BLOCKTIME": "0",
}

KERNEL_BYTES = 1_000_000
"""What oneDNN keeps for a layer at one shape in bf16, at most; with packed weights it is half, in fp32 less."""
KERNEL_SHARE = 0.25
"""Of the memory, for all of them."""
LEAST_KERNELS, MOST_KERNELS = 256, 65536


def cached_kernels(memory: int) -> int:
    """How many layers at a shape oneDNN may keep, of so many bytes of memory. Without a bound a server would come to
    keep each layer at each batch size and schedule, gigabytes for a small model (benchmarks/serving/kernel_memory.py).
    What was dropped is compiled again."""
    return max(LEAST_KERNELS, min(MOST_KERNELS, int(KERNEL_SHARE * memory / KERNEL_BYTES)))


def serving_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with the settings for the engine on this machine; settings of the user stay."""
    return {**CPU_SETTINGS, **kept_kernels(cached_kernels(limit_bytes())), **environment}


def missing_settings(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the settings that ``environment`` lacks, for a warning of a process that was started without."""
    return tuple(name for name in CPU_SETTINGS if name not in environment)
