"""The warmed models of one task behind one ``infer``: a batch runs on the model that its schedule names.

Every model and average that the profile names is in memory before the first query. A file whose hash is wrong is
refused then, with a line in the log, and the next best intact model takes its place in the profile.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import BackendName, EngineSettings, Precision
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.policies.prodigy import warmed_schedule
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.warmup.ensembler import ranking
from fedstill.cloud_server.warmup.reduced_nets import task_head
from fedstill.cloud_server.warmup.reductions import reduction_schedule
from fedstill.cloud_server.warmup.soups import SoupCache
from fedstill.cloud_server.warmup.warmed_models import (
    Catalogue,
    Recipe,
    WarmedModelError,
    WarmedModels,
    single,
)
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule
from fedstill.models.vit.task_bank import TaskParameters

log = logging.getLogger(__name__)

PLAIN = single(0)
"""The model without warm-up: its schedules name no model."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The settings that the engines of all models share; see ``EngineSettings``."""

    batch_buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    device: str = "auto"
    precision: Precision = "auto"
    backend: BackendName = "torch"
    variant: str = ""


class WarmedServing:
    """One engine per model or average.

    Args:
        store: the models that ``fedstill warmup`` made, its recipes chosen.
        plain: a network of the task (``reduced_nets.task_net``), whose weights do not matter.
        profile: that ``fedstill warmup`` wrote beside the models.

    Raises:
        WarmedModelError: the profile is not of these models, or none of them is usable.
    """

    def __init__(
        self, store: WarmedModels, plain: ElasticViT, profile: Profile, options: EngineOptions
    ) -> None:
        if len(profile.tasks) != 1:
            raise WarmedModelError(
                f"{store.folder}: its profile is of {len(profile.tasks)} tasks, not of one"
            )
        self._task = profile.tasks[0]
        soups = SoupCache(store, plain, capacity=1, source_models=len(store.catalogue.models))
        usable = _usable(profile, store.catalogue, _whole_models(store.catalogue, soups))
        if not usable:
            raise WarmedModelError(f"{store.folder}: no model is usable: warm up again")
        recipes = {schedule.name: recipe for schedule, recipe in usable}
        self.profile = replace(
            profile, schedules=tuple({schedule.name: schedule for schedule, _ in usable}.values())
        )
        """The profile of the usable models."""
        self.schedules: dict[str, TokenSchedule] = {
            schedule.name: reduction_schedule(-schedule.token_delta, plain.layers)
            for schedule in self.profile.schedules
        }
        """The recipe of each name in the profile."""
        classes = store.catalogue.class_names
        engines: dict[str, Engine] = {}
        for recipe in {recipe.name: recipe for recipe in recipes.values()}.values():
            mine = tuple(self.schedules[name] for name in recipes if recipes[name].name == recipe.name)
            engine = self._engine(soups.net(recipe), classes, mine, options)
            engines[recipe.name] = engine
            options = replace(options, variant=engine.variant)  # all models compute alike
        self._engines = {name: engines[recipe.name] for name, recipe in recipes.items()}

    @property
    def maximum_batch(self) -> int:
        return next(iter(self._engines.values())).maximum_batch

    def warm_up(self) -> None:
        """Run every schedule of every model once."""
        for engine in dict.fromkeys(self._engines.values()):
            engine.warm_up()

    def infer(self, images: Tensor, tasks: Sequence[str], schedule: str) -> list[Prediction | Rejection]:
        """One answer or refusal per row, by the model that the profile's schedule names; see ``Engine.infer``."""
        return self._engines[schedule].infer(images, tasks, self.schedules[schedule])

    def _engine(
        self,
        net: ElasticViT,
        class_names: tuple[str, ...],
        schedules: tuple[TokenSchedule, ...],
        options: EngineOptions,
    ) -> Engine:
        head = task_head(net)
        parameters = TaskParameters(class_names, head.weight.detach(), head.bias.detach())
        settings = EngineSettings(
            schedules,
            options.batch_buckets,
            options.device,
            options.precision,
            options.backend,
            options.variant,
        )
        return Engine(net, {self._task: parameters}, settings)


def _whole_models(catalogue: Catalogue, soups: SoupCache) -> set[int]:
    """The reductions of the models whose files are intact; the others are logged."""
    whole = set()
    for model in catalogue.models:
        try:
            soups.source_model(model.reduction)
        except WarmedModelError as error:
            log.error("event=warmed_model_refused model=%d reason=%r", model.reduction, str(error))
        else:
            whole.add(model.reduction)
    return whole


def _usable(profile: Profile, catalogue: Catalogue, whole: set[int]) -> list[tuple[Schedule, Recipe]]:
    """Each of the profile's schedules, or its best replacement; none if no model is intact."""
    firsts = (
        next((pair for pair in _candidates(catalogue, wanted) if whole.issuperset(pair[1].models)), None)
        for wanted in profile.schedules
    )
    return [pair for pair in firsts if pair is not None]


def _candidates(catalogue: Catalogue, wanted: Schedule) -> list[tuple[Schedule, Recipe]]:
    """The replacements of a schedule, best first: itself, then the single models by their measured accuracy there."""
    reduction = -wanted.token_delta
    bare = replace(wanted, name=wanted.name.partition("@")[0], model="")
    right = {
        model.reduction: digits
        for model in catalogue.models
        if (digits := catalogue.right.get(single(model.reduction).name, {}).get(str(reduction)))
    }
    chosen = _recipe(catalogue, wanted)
    found = [(wanted, chosen)]
    for recipe in ranking(right):
        accuracy = catalogue.accuracy(recipe, reduction) or 0.0
        schedule = (
            replace(bare, accuracy=(accuracy,))
            if recipe == PLAIN
            else warmed_schedule(bare, recipe.name, accuracy)
        )
        found.append((schedule, recipe))
    return found


def _recipe(catalogue: Catalogue, schedule: Schedule) -> Recipe:
    """The recipe of the schedule's model."""
    if not schedule.model:
        return PLAIN
    chosen = catalogue.recipes.get(str(-schedule.token_delta))
    if chosen is None or chosen.name != schedule.model:
        raise WarmedModelError(f"the profile's {schedule.name} is not among the warmed models: warm up again")
    return chosen
