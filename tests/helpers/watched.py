"""A server to look at that never was: its load goes up and down, on a clock that a test moves."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from fedstill.cloud_server.serving.monitoring.monitor import Monitor
from fedstill.cloud_server.serving.monitoring.recorder import Recorder
from fedstill.cloud_server.serving.scheduling.joint_profile import join
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.server.events import RanBatch
from fedstill.cloud_server.serving.server.served_tasks import TrunkState

OBJECTIVE_MS = 400.0


def profile(tasks: tuple[str, ...], pace: float = 1.0) -> Profile:
    """Three schedules: 100, 160 and 250 queries per second in full batches of 16."""
    lines = (("0", 0, 0.0100, 0.93), ("-10", -10, 0.00625, 0.91), ("-20", -20, 0.0040, 0.85))
    schedules = tuple(
        Schedule(name, delta, 0.0, pace * seconds, (accuracy,) * len(tasks), 16)
        for name, delta, seconds, accuracy in lines
    )
    return Profile("made", "by hand", tasks, schedules)


@dataclass
class Clock:
    """Seconds, as the test says."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Watched:
    """``monitor`` looks at it; `live` lets seconds pass. trunks: names, and the tasks of each."""

    trunks: dict[str, list[str]] = field(default_factory=lambda: {"": ["cats", "dogs"]})
    policy: str = "fedstill"
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.random = random.Random(0)
        self.is_ready, self.starting = True, dict[str, Any]()
        self.recorder = Recorder(clock=self.clock)
        self.monitor = Monitor(
            self.policy, lambda: self.is_ready, lambda: self.starting, self.recorder, "1.0"
        )
        parts = {
            name: profile(tuple(tasks), 1.0 + place)
            for place, (name, tasks) in enumerate(self.trunks.items())
        }
        self.profile = join(parts) if len(parts) > 1 else parts[""]
        self.queue = 0
        self.dispatcher: Any = SimpleNamespace(
            queued=lambda: self.queue, profile=self.profile, engines=1, draining=False
        )
        of = {task: name for name, tasks in self.trunks.items() for task in tasks}
        self.served: Any = SimpleNamespace(
            served={
                task: SimpleNamespace(
                    name=task, version=3, trunk=f"{name or 'one':0<64}", latency_ms=OBJECTIVE_MS, utility=0.5,
                    created="2026-11-01T10:00:00+00:00",
                )
                for task, name in of.items()
            },
            states={f"{name or 'one':0<64}": TrunkState() for name in self.trunks},
            trunks={
                f"{name or 'one':0<64}": SimpleNamespace(name=name, fingerprint=f"{name or 'one':0<64}", image_size=224)
                for name in self.trunks
            },
        )  # fmt: skip
        self.monitor.serve(self.dispatcher, self.served)

    def live(self, seconds: int, mean: float = 100.0, calm: bool = False) -> None:
        """So many seconds of load around so many queries per second; calm: without ups and downs."""
        for _ in range(seconds):
            wave = 1.0 if calm else 1 + 0.8 * math.sin(self.clock.now / 45) * math.sin(self.clock.now / 700)
            self.second(mean * wave)

    def second(self, rate: float) -> None:
        """One second with so many queries, and its tick."""
        self.live_without_tick(rate)
        self.clock.now += 1.0
        self.monitor.tick()

    def live_without_tick(self, rate: float) -> None:
        """So many queries in no time."""
        names = [(trunk, task) for trunk, tasks in self.trunks.items() for task in tasks]
        schedule, capacity = next(
            (pair for pair in (("0", 95.0), ("-10", 150.0), ("-20", 230.0)) if pair[1] >= rate),
            ("-20", 230.0),
        )
        over = max(0, round(rate - capacity))
        self.queue = over + int(rate / 20)
        for place in range(round(rate)):
            trunk, task = names[place % len(names)]
            self.recorder.offered(task, 0.5, 1)
            if place < over:
                self.recorder.dropped(task, "overload" if place % 3 else "evicted", 1)
                continue
            seconds = self.random.lognormvariate(math.log(0.03 + 0.2 * (rate / 260) ** 3), 0.35)
            self.recorder.answered(task, 0.5, (0.9,), late=seconds > OBJECTIVE_MS / 1e3)
            self.recorder.took(task, seconds)
            if place % 8 == 0:
                line = next(one for one in self.profile.schedules if one.name.endswith(f"{schedule}"))
                expected = line.seconds(8)
                took = expected * self.random.lognormvariate(0.02, 0.06)
                waited = (max(0.0, seconds - took),) * 8
                self.recorder.ran(
                    RanBatch(0.0, schedule, {task: 8}, expected, took, waited, 0, 0, 1e-4, trunk=trunk)
                )
