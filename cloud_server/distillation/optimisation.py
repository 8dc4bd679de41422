"""Optimisers and learning-rate schedules by their settings, so that teacher and students step alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from fedstill.cloud_server.distillation.settings import OptimiserSettings

WARM_UP = 0.2
SHORTEST = 6
"""OneCycleLR divides by zero when the warm-up is exactly one step."""


def make_optimiser(
    parameters: Iterable[nn.Parameter | dict[str, Any]], settings: OptimiserSettings
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 (the thesis') or AdamW, for parameters or for groups with an ``lr`` of their own."""
    chosen: Any = list(parameters)
    if settings.kind == "sgd":
        return torch.optim.SGD(
            chosen, settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay, foreach=True
        )
    return torch.optim.AdamW(chosen, settings.learning_rate, weight_decay=settings.weight_decay, foreach=True)


def make_schedule(
    optimiser: torch.optim.Optimizer, settings: OptimiserSettings, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """A schedule to be stepped once per batch."""
    if settings.schedule == "step":
        edge = settings.step_epoch * steps_per_epoch
        return LambdaLR(optimiser, lambda step: 1.0 if step < edge else 0.1)
    total = max(SHORTEST, epochs * steps_per_epoch)
    highest = [group["lr"] for group in optimiser.param_groups]
    return OneCycleLR(optimiser, highest, total_steps=total, pct_start=WARM_UP)
