"""What happened in a stretch of time: sums, peaks and latencies, of the server and of each of its parts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

from fedstill.cloud_server.serving.monitoring.latency_counts import LatencyCounts

Kind = Literal["server", "task", "schedule", "trunk", "reason"]
Key = tuple[Kind, str, str]
"""Whose figure it is, its name, and the figure. A server has no name."""
PERCENTILES = ("p50", "p95", "p99")


@dataclass
class Tally:
    """seconds: that it covers. sums: of these seconds. peaks: the largest value seen. latencies: of tasks; of all
    together under the empty name."""

    seconds: float = 0.0
    sums: dict[Key, float] = field(default_factory=lambda: defaultdict(float))
    peaks: dict[Key, float] = field(default_factory=dict)
    latencies: dict[str, LatencyCounts] = field(default_factory=lambda: defaultdict(LatencyCounts))

    def peak(self, key: Key, value: float) -> None:
        """Keep the value, if none was larger."""
        self.peaks[key] = max(value, self.peaks.get(key, value))

    def merge(self, other: Tally) -> None:
        """Cover the stretch of another one, too."""
        self.seconds += other.seconds
        for key, value in other.sums.items():
            self.sums[key] += value
        for key, value in other.peaks.items():
            self.peak(key, value)
        for name, counts in other.latencies.items():
            self.latencies[name].merge(counts)

    def rate(self, key: Key) -> float:
        """Per second."""
        return self.sums.get(key, 0.0) / self.seconds if self.seconds > 0 else 0.0

    def percentiles(self, task: str = "") -> dict[str, float] | None:
        """p50, p95 and p99 in milliseconds, from arrival to answer; None without answers."""
        found = self.latencies[task].quantiles() if task in self.latencies else None
        return None if found is None else dict(zip(PERCENTILES, (1e3 * one for one in found), strict=True))

    def row(self) -> dict[Key, float]:
        """Sums as rates per second, peaks, and percentiles in milliseconds."""
        made = {key: value / self.seconds for key, value in self.sums.items()} | self.peaks
        for task in self.latencies:
            for name, milliseconds in (self.percentiles(task) or {}).items():
                made["task" if task else "server", task, name] = milliseconds
        return made
