"""How many cores this process may use: less than the machine has under taskset, in a container or a systemd slice."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> int:
    """At least 1: the cores that affinity allows, and no more than the CPU quota of any cgroup around this process.

    A quota of one and a half cores counts as two: the second one is there for half of the time.
    """
    allowed = float(_affinity())
    for quota in _quotas(root, membership):
        allowed = min(allowed, quota)
    return max(1, -int(-allowed // 1))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path, membership: Path) -> list[float]:
    """In cores, of this process's cgroups and all above them; both versions of cgroups may be mounted."""
    found = []
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            places, read = [root, root / "unified"], _v2
        elif "cpu" in controllers.split(","):
            places, read = [root / "cpu", root / controllers], _v1
        else:
            continue
        inner = Path(path.lstrip("/"))
        for place in places:
            found += [read(place / folder) for folder in (inner, *inner.parents)]
    return [quota for quota in found if quota is not None]


def _v2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return _cores(quota, period)


def _v1(folder: Path) -> float | None:
    return _cores(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> float | None:
    """None for no limit, which version 2 writes as "max" and version 1 as -1."""
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
