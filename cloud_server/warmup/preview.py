"""The plan and the expected cost of a warm-up, before anything is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass

from fedstill.cloud_server.warmup.planner import Cost
from fedstill.cloud_server.warmup.warm_up import PlanSettings, WarmUp


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """reduction: 0 for the model to compare with. made: it is already finished. note: why it would be made."""

    reduction: int
    cost: Cost
    made: bool
    note: str


@dataclass(frozen=True, slots=True)
class Preview:
    """The models that are certain or possible, and the maximum cost of all. steps: per model."""

    models: tuple[PlannedModel, ...]
    steps: int
    most_seconds: float
    most_models: int


def preview(backend: WarmUp, plan: PlanSettings) -> Preview:
    """The plan's first models, the cost of each further model, and the maximum total cost.

    Times training steps unless they are timed already.
    """
    middle, last, budget = plan.middle, plan.reductions[-1], plan.budget
    between = [r for r in plan.reductions if middle < r < last]
    notes = {0: "to compare with, not in the budget", middle: "first", last: "first"}
    notes |= dict.fromkeys(
        (*between[:1], *between[-1:]), "possible: the planner decides as accuracies come in"
    )
    models = tuple(
        PlannedModel(r, backend.cost(r), backend.store.catalogue.model(r) is not None, note)
        for r, note in notes.items()
    )
    count = budget.models or len(plan.reductions)
    dearest = max(backend.cost(r).seconds for r in plan.reductions if r >= middle)
    most = sum(backend.cost(r).seconds for r in (middle, last)) + max(0, count - 2) * dearest
    return Preview(
        models, backend.steps, most if budget.seconds is None else min(most, budget.seconds), count
    )
