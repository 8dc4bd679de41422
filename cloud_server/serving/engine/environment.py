"""The process environment in which the engine is fastest on a CPU; set by the starting process.

glibc and oneDNN read these once, before any of our code runs, so a running process cannot set them for itself:
launchers pass :func:`serving_environment` to the process that they start. This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

SWITCH_SECONDS = 2e-5
"""How long a thread may keep the interpreter while another waits for it. Every operator of a batch takes it again, so
at Python's 5 ms a busy event loop makes a batch tens of times slower (benchmarks/serving/serving_switching.py)."""

CPU_SETTINGS: Mapping[str, str] = {
    # Otherwise activations of tens of megabytes are mapped and unmapped again for every operator, page by page.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000000",
    # An elastic server cycles through more (schedule, batch) shapes than oneDNN's 1024 cached primitives.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "65536",
    "LRU_CACHE_CAPACITY": "65536",
    # Idle OpenMP threads must not spin beside the threads that serve requests.
    "KMP_BLOCKTIME": "0",
}


def serving_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with the settings for the engine; settings of the user stay."""
    return {**CPU_SETTINGS, **environment}


def missing_settings(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the settings that ``environment`` lacks, for a warning of a process that was started without."""
    return tuple(name for name in CPU_SETTINGS if name not in environment)
