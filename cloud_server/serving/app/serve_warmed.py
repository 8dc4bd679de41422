"""The models that ``fedstill warmup`` made, ready to serve: one task, its model and reduction chosen per batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.served_models import OnProgress, ServedModels
from fedstill.cloud_server.serving.engine.engine_settings import BackendName
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.scheduling.profile import read_profile
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.live_profile import fit_profile
from fedstill.cloud_server.serving.server.served_tasks import FixedTasks, ServedTrunk
from fedstill.cloud_server.serving.tasks.registry import DEFAULT_LATENCY_MS, DEFAULT_UTILITY, TaskVersion
from fedstill.cloud_server.warmup.reduced_nets import task_net
from fedstill.cloud_server.warmup.warmed_models import WarmedModelError, WarmedModels, read_catalogue
from fedstill.cloud_server.warmup.warmed_serving import EngineOptions, WarmedServing
from fedstill.common.option_values import as_mistake, whole_numbers
from fedstill.common.paths import data_path

LOG = logging.getLogger(__name__)


def warmed_models(plan: ServePlan, folder: Path, tell: OnProgress) -> ServedModels:
    """Read, check and warm up the models in ``folder``. Raises DataError; WarmedModelError if none is usable."""
    catalogue = read_catalogue(folder)
    profile = read_profile(folder / "profile.json")
    tell("reading the weights")
    trunk = load_trunk(data_path(plan.weights), plan.architecture)
    if trunk.fingerprint != catalogue.identity.get("trunk"):
        raise WarmedModelError(
            f"{folder}: its models began from other --weights: name the file they began from"
        )
    store = WarmedModels(folder, catalogue.identity, catalogue.class_names)
    classes = len(catalogue.class_names)
    plain = task_net(trunk.net, (torch.zeros(classes, trunk.net.width), torch.zeros(classes)))
    precision: Any = plan.precision  # checked
    # The profile of `fedstill warmup` was timed with torch.
    backend: BackendName = "torch" if plan.backend == "auto" else plan.backend
    options = EngineOptions(whole_numbers("--batches", plan.batches), plan.device, precision, backend)
    with as_mistake("--backend"):
        serving = WarmedServing(store, plain, profile, options)
    tell(f"warming up {len(serving.schedules)} schedules")
    serving.warm_up()
    (name,) = serving.profile.tasks
    task = TaskVersion(
        name=name,
        version=1,
        class_names=catalogue.class_names,
        trunk=trunk.fingerprint,
        parameters="",
        prompts=(),
        latency_ms=DEFAULT_LATENCY_MS,
        utility=DEFAULT_UTILITY,
        accuracy=max(schedule.accuracy[0] for schedule in serving.profile.schedules),
        created="",
        active=True,
        preprocess=catalogue.preprocess,
    )
    LOG.info("event=warmed_models folder=%s schedules=%s", folder, ",".join(serving.schedules))

    def infer(
        images: Sequence[torch.Tensor], tasks: Sequence[str], schedule: str
    ) -> list[Prediction | Rejection]:
        return serving.infer(torch.stack(list(images)), tasks, schedule)

    return ServedModels(
        fit_profile(
            serving.profile, {name: task.fingerprint}, {name: task}, serving.schedules, serving.maximum_batch
        ),
        infer,
        plain.image_size,
        lambda _: FixedTasks(
            ServedTrunk(trunk.fingerprint, "", plain.image_size, plain.width, catalogue.preprocess),
            {name: task},
        ),
    )
