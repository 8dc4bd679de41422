"""The tasks of a registry on one trunk or several, ready to serve."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from fedstill.cloud_server.serving.app.serve_budget import AskedTrunk, trunks_within
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_trunk import ReadyTrunk, known_trunk, ready_trunk
from fedstill.cloud_server.serving.app.served_models import OnProgress, ServedModels
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.trunk import Trunk, load_trunk
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.joint_profile import join, joint_name
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.engine_runs import Infer
from fedstill.cloud_server.serving.server.live_tasks import LiveTasks, warn_of_other_trunks
from fedstill.cloud_server.serving.server.live_trunk import LiveTrunk
from fedstill.cloud_server.serving.server.loading_dispatcher import LoadingDispatcher
from fedstill.cloud_server.serving.server.served_tasks import TrunkState
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry, open_registry
from fedstill.common.errors import ConfigError
from fedstill.common.option_values import pair
from fedstill.common.paths import data_path
from fedstill.models.vit.without_weights import without_weights

LOG = logging.getLogger(__name__)


def registry_models(plan: ServePlan, tell: OnProgress) -> ServedModels:
    """Open, measure (or find what was measured) and warm up. Raises ConfigError, DataError."""
    registry = open_registry(plan.state, plan.database)
    tell("reading the weights")
    trunks = _load(plan)
    generation = registry.generation()
    useful = _with_tasks(plan, registry, trunks)
    given = zip(trunks.items(), plan.trunks, strict=True)
    named = [
        (name if len(useful) > 1 else "", trunk, options)
        for (name, trunk), options in given
        if name in useful
    ]
    loading = None
    if plan.memory_budget is None:
        ready = [
            ready_trunk(plan, name, trunk, options.profile, registry, partial(_tell_of, name, tell))
            for name, trunk, options in named
        ]
    else:
        asked = [
            AskedTrunk(
                known_trunk(plan, name, trunk, options.profile, registry),
                options,
                partial(_tell_of, name, tell),
            )
            for name, trunk, options in named
        ]
        ready, loading = trunks_within(plan, plan.memory_budget, asked)
    first, *others = ready

    def live_tasks(dispatcher: Dispatcher) -> LiveTasks:
        return LiveTasks(
            registry, first.engine, dispatcher, first.trunk.fingerprint, first.measured, first.columns,
            first.tasks, generation, partial(make_policy, plan.policy), first.keep, first.name,
            [_live(one) for one in others],
            dispatcher.state if isinstance(dispatcher, LoadingDispatcher) else lambda _: TrunkState(),
        )  # fmt: skip

    return ServedModels(
        join({one.name: one.profile for one in ready}) if others else first.profile,
        _infer(ready),
        first.engine.net.image_size,
        live_tasks,
        registry.close,
        loading,
    )


def _load(plan: ServePlan) -> dict[str, Trunk]:
    """By name: that of the file; one alone has none. Raises ConfigError for the same weights twice."""
    trunks: dict[str, Trunk] = {}
    for options in plan.trunks:
        trunk = load_trunk(data_path(options.weights), options.architecture)
        if plan.memory_budget is not None:
            trunk = replace(trunk, net=without_weights(trunk.net))
        if any(trunk.fingerprint == other.fingerprint for other in trunks.values()):
            raise ConfigError(f"--weights {options.weights}: the same weights as another file's")
        name = data_path(options.weights).stem if plan.others else ""
        trunks[f"{name}-{trunk.fingerprint[:8]}" if name in trunks else name] = trunk
    return trunks


def _with_tasks(plan: ServePlan, registry: TaskRegistry, trunks: dict[str, Trunk]) -> list[str]:
    """Names of the trunks that have tasks; others are left out, with a warning. Raises ConfigError if none has, and
    for images of a task that is not served."""
    active = registry.active()
    fingerprints = [trunk.fingerprint for trunk in trunks.values()]
    others = warn_of_other_trunks(active, fingerprints)
    useful = [name for name, trunk in trunks.items() if registry.active_on(trunk.fingerprint)]
    if not useful:
        of_these = f" of these weights ({', '.join(others)}: of others)" if others else ""
        raise ConfigError(f"{plan.state}: serves no task{of_these}; add one with: fedstill tasks add NAME")
    for (name, _), options in zip(trunks.items(), plan.trunks, strict=True):
        if name not in useful:
            LOG.warning(
                "event=weights_left_out weights=%s hint='they have no task; add one with fedstill tasks add NAME "
                "--weights %s, and start again'",
                options.weights, options.weights,
            )  # fmt: skip
    served = [name for name, task in active.items() if task.trunk in fingerprints]
    strange = sorted({name for name, _ in map(pair, plan.images)} - set(served))
    if strange and any(options.profile is None for options in plan.trunks):
        raise ConfigError(f"--images: {strange[0]} is not served (served: {', '.join(served)})")
    return useful


def _tell_of(name: str, tell: OnProgress, doing: str) -> None:
    tell(f"{name}: {doing}" if name else doing)


def _live(one: ReadyTrunk) -> LiveTrunk:
    return LiveTrunk(
        one.engine, one.trunk.fingerprint, one.name, one.measured, one.columns, one.tasks, one.keep
    )


def _infer(ready: Sequence[ReadyTrunk]) -> Infer:
    """Runs a batch on the trunk that its schedule is of."""
    runs: dict[str, Callable[..., list[Prediction | Rejection]]] = {}
    for one in ready:
        for name, schedule in one.schedules.items():
            runs[joint_name(one.name, name)] = partial(one.infer, schedule=schedule)

    def infer(
        images: Sequence[torch.Tensor], tasks: Sequence[str], schedule: str
    ) -> list[Prediction | Rejection]:
        return runs[schedule](images, tasks)

    return infer
