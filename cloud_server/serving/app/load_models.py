"""What a plan names, loaded: the tasks of a registry, or warmed models."""

from __future__ import annotations

from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_registry import registry_models
from fedstill.cloud_server.serving.app.serve_warmed import warmed_models
from fedstill.cloud_server.serving.app.served_models import OnProgress, ServedModels


def load_models(plan: ServePlan, tell: OnProgress) -> ServedModels:
    """Open, measure (or find what was measured) and warm up. Raises ConfigError, DataError."""
    return registry_models(plan, tell) if plan.warmed is None else warmed_models(plan, plan.warmed, tell)
