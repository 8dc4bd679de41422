"""Replicas inside a test's process: their models, dispatchers and prices are the real ones, only Ray is missing."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fedstill.cloud_server.serving.replicas.answering import Answering
from fedstill.cloud_server.serving.replicas.front import ReplicaLost, Replicas
from fedstill.cloud_server.serving.replicas.passed_call import PassedCall, plain_call, read_call
from fedstill.cloud_server.serving.scheduling.price import Offer, Standings, plain_figures


@dataclass
class LocalReplicas(Replicas):
    """By name. dying: of these, the next call is lost after it was sent; then they are gone."""

    replicas: dict[str, Answering]
    dying: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    calls: list[PassedCall] = field(default_factory=list)
    standings: Standings = field(default_factory=Standings)
    hanging: bool = False

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> bool:
        before, self.running = self.running, len(self.replicas)
        return self.running != before

    def offer(self, task: str) -> Offer | None:
        return self.standings.offer(task)

    async def send(self, call: PassedCall, content: bytes) -> dict[str, Any]:
        plain = json.loads(json.dumps(plain_call(call)))  # nothing but plain values travels
        passed = read_call(plain)
        self.calls.append(passed)
        if self.hanging:
            await asyncio.sleep(3600)
        now = time.monotonic()
        for name, one in self.replicas.items():
            self.standings.hear(name, json.loads(json.dumps(plain_figures(one.figures()))), now)
        order = self.standings.order(list(self.replicas), passed.query, now)
        if not order:
            raise ReplicaLost
        name = order[0]
        self.standings.sent(name, passed.query)
        self.asked[name] += 1
        if name in self.dying:
            self.dying.discard(name)
            del self.replicas[name]
            raise ReplicaLost
        return await self.replicas[name].answer(passed, bytes(content))
