"""Which token schedules a server offers."""

from __future__ import annotations

from collections.abc import Mapping

from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule, check_distinct, default_schedules, parse_schedule
from fedstill.models.vit.task_bank import TaskParameters


def chosen_schedules(
    text: str | None, net: ElasticViT, tasks: Mapping[str, TaskParameters]
) -> tuple[TokenSchedule, ...]:
    """The schedules of the option, or those of the default that all tasks have prompts for."""
    if text is None:
        everyones = set.intersection(*({0, *task.prompts} for task in tasks.values()))
        defaults = default_schedules(net.layers, net.patches)
        return tuple(schedule for schedule in defaults if schedule.prompts in everyones)
    named = (parse_schedule(part.strip(), net.layers) for part in text.split(","))
    return check_distinct(named, net.patches)
