"""How much memory this process has, and how much it may have."""

from __future__ import annotations

from pathlib import Path

import psutil

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container, in the second and the first version of control groups."""


def resident_bytes() -> int:
    """Of this process."""
    return int(psutil.Process().memory_info().rss)


def limit_bytes(files: tuple[str, ...] = LIMITS) -> int:
    """What the machine has, or a container's limit if that is less."""
    most = int(psutil.virtual_memory().total)
    for file in files:
        try:
            most = min(most, int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return most
