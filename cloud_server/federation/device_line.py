"""The line to one client's device: finds its node, and asks again when that went away."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeVar

from fedstill.cloud_server.federation.exchange import Answer, DeviceLost, Exchange
from fedstill.cloud_server.federation.node_registry import NodeRegistry

Reply = TypeVar("Reply")

AGAIN_SECONDS = 0.2
"""Pause before a lost question is asked again. Devices answer a repeated question with the same answer."""


@dataclass(frozen=True)
class DeviceLine:
    """``patience``: seconds that one question may take, all its repetitions included."""

    exchange: Exchange
    node_registry: NodeRegistry
    client: int
    patience: float

    def ask(self, action: str, request: object, expect: type[Reply]) -> tuple[Reply, Answer]:
        """Ask this client's device.

        Raises:
            DeviceLost: no answer in time.
            DeviceFailure: the device raised, or sent nonsense.
        """
        end = time.monotonic() + self.patience
        while True:
            try:
                node = self.node_registry.node(self.client, end - time.monotonic())
                found = self.exchange.ask(node, action, request, expect, end - time.monotonic())
            except DeviceLost:
                self.node_registry.late(self.client)
                if time.monotonic() + AGAIN_SECONDS >= end:
                    raise
                time.sleep(AGAIN_SECONDS)
            else:
                self.node_registry.answered(self.client)
                return found
