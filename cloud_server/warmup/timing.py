"""How long a batch takes at each reduction: the engine's own measurement, once for all models of a trunk.

The cost of merging depends on shapes, not on weights, so no warmed model needs a timing of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.profiler import measure_times
from fedstill.cloud_server.warmup.reductions import reduction_schedule
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.task_bank import TaskParameters

SMALLEST_SLOPE = 1e-6
"""The least slope that a profile accepts, in seconds per query; used if noise hides the slope."""


def reduction_times(
    net: ElasticViT, reductions: Sequence[int], batches: tuple[int, ...], rounds: int
) -> tuple[dict[int, tuple[float, float]], str]:
    """(fixed, per query) seconds by reduction, and which variant of the network the engine found fastest.

    Args:
        batches: sizes to time, ascending. rounds: timings per reduction and size, interleaved.
    """
    schedules = {reduction: reduction_schedule(reduction, net.layers) for reduction in reductions}
    task = TaskParameters(("a", "b"), torch.zeros(2, net.width), torch.zeros(2))
    engine = Engine(net, {"timed": task}, EngineSettings(tuple(schedules.values()), batches))
    measured = measure_times(engine, tuple(schedules.values()), rounds)
    times = {
        reduction: (
            measured[schedule].fixed_seconds,
            max(measured[schedule].per_query_seconds, SMALLEST_SLOPE),
        )
        for reduction, schedule in schedules.items()
    }
    return times, engine.variant
