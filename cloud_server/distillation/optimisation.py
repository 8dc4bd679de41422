"""Optimisers and learning-rate schedules by their settings, so that teacher and students step alike."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from fedstill.cloud_server.distillation.settings import OptimiserSettings

WARM_UP = 0.2
SHORTEST = 6
"""OneCycleLR divides by zero when the warm-up is exactly one step."""


def without_compiler(kind: type[torch.optim.Optimizer]) -> Any:
    """The same optimiser, step for step, for training that nobody compiles.

    torch wraps these methods for its compiler, which takes as long to import as torch itself.
    """
    names = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")
    plain: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    plain["step"] = torch.no_grad()(plain["step"])
    return type(kind.__name__, (kind,), plain)


SGD, AdamW = without_compiler(torch.optim.SGD), without_compiler(torch.optim.AdamW)


def make_optimiser(
    parameters: Iterable[nn.Parameter | dict[str, Any]], settings: OptimiserSettings
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 (the thesis') or AdamW, for parameters or for groups with an ``lr`` of their own."""
    chosen: Any = list(parameters)
    options: dict[str, Any] = {"weight_decay": settings.weight_decay, "foreach": True}
    made: torch.optim.Optimizer
    if settings.kind == "sgd":
        made = SGD(chosen, settings.learning_rate, momentum=0.9, **options)
    else:
        made = AdamW(chosen, settings.learning_rate, **options)
    return made


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
