"""Runs batches on the model that a schedule names, and on the next best one where that model cannot be used.

One engine per model in use, made when first asked for. A file whose hash is wrong is refused once, with a line in
the log, and never asked for again until the process starts anew.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor

from fedstill.cloud_server.serving.answers import Answer, Refusal
from fedstill.cloud_server.serving.engine import Engine, EngineSettings
from fedstill.cloud_server.warmup.reduced_nets import task_head
from fedstill.cloud_server.warmup.reductions import reduction_schedule
from fedstill.cloud_server.warmup.soups import SoupKitchen
from fedstill.cloud_server.warmup.warmed_models import Recipe, WarmedModelError
from fedstill.models.task_bank import TaskParameters

log = logging.getLogger(__name__)


class WarmedServing:
    """The warmed models of one task behind one ``infer``.

    Args:
        rankings: what each reduction can be served with, best first (``ensembler.ranking``).
        settings: of every engine; its schedules must hold those of the reductions.
        capacity: engines to keep.
    """

    def __init__(
        self,
        task: str,
        class_names: tuple[str, ...],
        kitchen: SoupKitchen,
        rankings: Mapping[int, Sequence[Recipe]],
        settings: EngineSettings,
        capacity: int = 4,
    ) -> None:
        self._task, self._class_names = task, class_names
        self._kitchen, self._rankings = kitchen, rankings
        self._settings, self._capacity = settings, capacity
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._refused: set[str] = set()

    def infer(self, images: Tensor, reduction: int) -> tuple[list[Answer | Refusal], Recipe]:
        """One answer or refusal per row, and what they were made with.

        Raises:
            WarmedModelError: none of the models that this reduction can be served with is usable.
        """
        engine, recipe = self._best(reduction)
        schedule = reduction_schedule(reduction, engine.net.layers)
        return engine.infer(images, [self._task] * len(images), schedule), recipe

    def _best(self, reduction: int) -> tuple[Engine, Recipe]:
        for recipe in self._rankings[reduction]:
            if recipe.name in self._refused:
                continue
            try:
                return self._engine(recipe), recipe
            except WarmedModelError as error:
                self._refused.add(recipe.name)
                log.error("warmed model refused model=%s reason=%s", recipe.name, error)
        raise WarmedModelError(f"no usable model is left for reduction {reduction}: warm up again")

    def _engine(self, recipe: Recipe) -> Engine:
        if recipe.name not in self._engines:
            net = self._kitchen.net(recipe)
            head = task_head(net)
            parameters = TaskParameters(self._class_names, head.weight.detach(), head.bias.detach())
            self._engines[recipe.name] = Engine(net, {self._task: parameters}, self._settings)
        self._engines.move_to_end(recipe.name)
        while len(self._engines) > self._capacity:
            self._engines.popitem(last=False)
        return self._engines[recipe.name]
