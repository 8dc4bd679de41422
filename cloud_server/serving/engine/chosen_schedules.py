"""Which token schedules a server offers."""

from __future__ import annotations

from collections.abc import Mapping

from psutil import virtual_memory

from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.openvino_backend import MEMORY_SHARE, graph_bytes
from fedstill.cloud_server.serving.engine.openvino_library import missing_library
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import (
    TokenSchedule,
    check_distinct,
    default_int8_schedules,
    default_schedules,
    parse_schedule,
)
from fedstill.models.vit.task_bank import TaskParameters

MOST_SCHEDULES = 16
"""Of the default, in floating point and in int8."""


def chosen_schedules(
    text: str | None, net: ElasticViT, tasks: Mapping[str, TaskParameters], int8: bool = False
) -> tuple[TokenSchedule, ...]:
    """The schedules of the option, or those of the default that all tasks have prompts for.

    int8: the default has some in int8, too.
    """
    if text is None:
        everyones = set.intersection(*({0, *task.prompts} for task in tasks.values()))
        defaults = default_schedules(net.layers, net.patches)
        usual = tuple(schedule for schedule in defaults if schedule.prompts in everyones)
        return usual + (default_int8_schedules(net.layers, net.patches) if int8 else ())
    named = (parse_schedule(part.strip(), net.layers) for part in text.split(","))
    return check_distinct(named, net.patches)


def int8_fits(net: ElasticViT, settings: EngineSettings) -> bool:
    """Whether schedules in int8 belong to the default: an engine can run them, and their graphs have room on this
    machine. Who asks for fp32 wants exact answers, and who limits the memory has other uses for it."""
    if settings.backend == "torch" or settings.precision == "fp32" or settings.memory is not None:
        return False
    if settings.torch_device.type != "cpu" or missing_library():
        return False
    room: float = MEMORY_SHARE * virtual_memory().total
    return 2 * graph_bytes(net, MOST_SCHEDULES) < room
