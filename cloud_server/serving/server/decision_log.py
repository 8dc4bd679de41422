"""The decision log: one JSON line per dispatch, so that the planner's decisions can be looked up afterwards.

Two files at most: when the newer has grown large, it becomes the older.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from logging.handlers import RotatingFileHandler
from pathlib import Path
from threading import Lock

from fedstill.cloud_server.serving.scheduling.queries import RejectionReason
from fedstill.cloud_server.serving.server.events import RanBatch

LARGEST_BYTES = 64 * 2**20


class DecisionLog:
    """An observer of the dispatcher that appends to ``path``. Times in milliseconds; ``time``: seconds since 1970."""

    def __init__(self, path: Path, largest_bytes: int = LARGEST_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = RotatingFileHandler(path, maxBytes=largest_bytes, backupCount=1, encoding="utf-8")
        self._lock, self._refused = Lock(), Counter[str]()

    def offered(self, task: str, utility: float, queries: int) -> None:
        """Not a decision."""

    def dropped(self, task: str, reason: RejectionReason, queries: int) -> None:
        """Not a decision."""

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        """Not a decision."""

    def ran(self, batch: RanBatch) -> None:
        """Append the line of a batch, without a trunk, a device and callers if there is nothing to say of them."""
        with self._lock:
            refused, self._refused = self._refused, Counter()
        more = {
            "trunk": batch.trunk,
            "device": batch.device,
            "nodes": batch.nodes,
            "rate_limited": dict(refused),
            "requests": batch.requests,
        }
        line = json.dumps(
            {
                "time": round(batch.time, 4),
                "batch": batch.size,
                "tasks": batch.tasks,
                "versions": batch.versions,
                "schedule": batch.schedule,
                "predicted_ms": round(1e3 * batch.predicted_seconds, 3),
                "actual_ms": round(1e3 * batch.seconds, 3),
                "waiting_ms": round(1e3 * max(batch.waiting_seconds), 3),
                "queue": batch.queued,
                "evicted": batch.evicted,
                "decision_ms": round(1e3 * batch.decision_seconds, 3),
                **{name: value for name, value in more.items() if value},
            }
        )
        self._file.emit(logging.makeLogRecord({"msg": line}))

    def limited(self, node: str, queries: int, taken: bool) -> None:
        """A node asked that has a limit. The next line says how much was refused since the last one."""
        if not taken:
            with self._lock:
                self._refused[node] += queries

    def close(self) -> None:
        """Close the file."""
        self._file.close()
