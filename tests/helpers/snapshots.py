"""Snapshots as ``ServingMetrics.snapshot`` makes them, of a server whose load goes up and down."""

from __future__ import annotations

import math
import time
from typing import Any

KEYS = ("queries", "utility_offered", "utility_earned", "answered", "answered_late", "dropped")


class MadeSnapshots:
    """Call it for the next one."""

    def __init__(self, policy: str = "fedstill", tasks: list[str] | None = None) -> None:
        self._policy, self._tasks = policy, tasks or ["cifar10", "tinyimagenet100", "mnist"]
        self._started, self._calls = time.time(), 0
        self._totals = dict.fromkeys(KEYS, 0.0)
        self._drops = {"evicted": 0, "overload": 0}

    def __call__(self) -> dict[str, Any]:
        self._calls += 1
        load = 40 + 30 * math.sin(self._calls / 9)
        over = max(0.0, load - 45)
        rates = dict(
            zip(KEYS, (load, load / 3, (load - over) / 3.5, load - over, over / 50, over), strict=True)
        )
        for key, rate in rates.items():
            self._totals[key] += rate
        self._drops["overload"] += int(over)
        self._drops["evicted"] += 1
        merged = int(load)
        return {
            "time": time.time(),
            "started": self._started,
            "policy": self._policy,
            "tasks": self._tasks,
            "queued": int(over * 2),
            "totals": self._totals,
            "drops": self._drops,
            "schedules": {"0": 100, "-10": 50},
            "recent": {
                **rates,
                "schedules": {"0": 70 - merged, "-10": merged, "m22x4-20x4-0x4": merged // 2, "+4": 5},
                "batch_size": 1 + over / 4,
                "waiting_ms": {"p50": 20 + over * 5, "p95": 50 + over * 8},
                "batch_ms": {"p50": 60.0, "p95": 90 + over},
                "model_error": 0.04,
            },
        }
