"""Ray Serve's interface for autoscaling, whose policies are experimental: how many replicas our prices pay for.

Ray asks with the averages of what replicas tell (``record_autoscaling_stats``), keeps the number between the least and
the most, and waits before it follows (``upscale_delay_s``, ``downscale_delay_s``).
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

from fedstill.cloud_server.serving.scheduling.price import wanted_replicas

PRICE, BUSY = "price", "busy"


class PricePolicy:
    """cost: utility per second that a replica has to earn."""

    def __init__(self, cost: float = 0.0) -> None:
        self._cost = cost

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and nothing to remember."""
        told = context.aggregated_metrics or {}
        prices, busy = (told.get(name, {}).values() for name in (PRICE, BUSY))
        return wanted_replicas(context.current_num_replicas, prices, busy, self._cost), {}
