"""The connection to one client's device: finds its node, and asks again if that node went away."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeVar

from fedstill.cloud_server.federation.exchange import DeviceLost, Exchange, WireCost
from fedstill.cloud_server.federation.node_registry import NodeRegistry
from fedstill.protos.messages import Hello

Reply = TypeVar("Reply")

AGAIN_SECONDS, LONGEST_AGAIN_SECONDS = 0.2, 5.0
"""Pause before a lost request is sent again. Devices give the same answer to a repeated request."""


@dataclass(frozen=True)
class DeviceLine:
    """``patience``: seconds that one request may take, all its repetitions included."""

    exchange: Exchange
    node_registry: NodeRegistry
    client: int
    patience: float

    @property
    def hello(self) -> Hello | None:
        """What this client's device says of itself; None if it is not there."""
        return self.node_registry.present().get(self.client)

    def ask(self, action: str, request: object, expect: type[Reply]) -> tuple[Reply, WireCost]:
        """Ask this client's device.

        Raises:
            DeviceLost: no answer in time.
            DeviceFailure: the device raised, or sent an invalid reply.
        """
        end, pause = time.monotonic() + self.patience, AGAIN_SECONDS
        while True:
            try:
                node = self.node_registry.node(self.client, end - time.monotonic())
                found = self.exchange.ask(node, action, request, expect, end - time.monotonic())
            except DeviceLost:
                self.node_registry.late(self.client)
                if time.monotonic() + pause >= end:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_AGAIN_SECONDS)
            else:
                self.node_registry.answered(self.client)
                return found
