"""What a plan names, loaded: the tasks of a registry, or warmed models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_registry import registry_models
from fedstill.cloud_server.serving.app.serve_warmed import warmed_models
from fedstill.cloud_server.serving.app.served_models import OnProgress, ServedModels


def load_models(plan: ServePlan, tell: OnProgress) -> ServedModels:
    """Open, measure (or find what was measured) and warm up. Raises ConfigError, DataError."""
    return registry_models(plan, tell) if plan.warmed is None else warmed_models(plan, plan.warmed, tell)


def load_devices(plan: ServePlan, tell: OnProgress) -> Sequence[ServedModels]:
    """The same for each device of the plan, one after the other: no measurement is disturbed by another."""
    if len(plan.devices) == 1:
        return [load_models(plan, tell)]
    return [
        load_models(replace(plan, device=device), partial(_tell_of, device, tell)) for device in plan.devices
    ]


def _tell_of(device: str, tell: OnProgress, doing: str) -> None:
    tell(f"{device}: {doing}")
