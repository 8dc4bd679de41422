"""``Find_Ratio`` of the thesis (Section 4.5): a task's images and a pre-trained model in, warmed models out.

Every model starts from the same trunk and the same head, a linear probe on plain features, so that their weights can
be averaged. The planner sees costs that were timed here and accuracies that were measured here, and all finished work
is on disk, so a killed command can simply be repeated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedstill.cloud_server.warmup.ensembler import EnsembleSettings, best_single, choose_recipe
from fedstill.cloud_server.warmup.facility_planner import plan_by_coverage
from fedstill.cloud_server.warmup.fine_tuning import (
    FineTuneSettings,
    Prepared,
    fine_tune,
    right_answers,
    step_seconds,
)
from fedstill.cloud_server.warmup.planner import Budget, Cost, plan_ratios
from fedstill.cloud_server.warmup.reduced_nets import MergingNet
from fedstill.cloud_server.warmup.reductions import reduction_schedule, spread
from fedstill.cloud_server.warmup.soups import SoupCache
from fedstill.cloud_server.warmup.warmed_models import Recipe, WarmedModels, single
from fedstill.common.errors import DataError
from fedstill.datasets.images.image_tasks import ImageSet
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import forward_macs

PlannerName = Literal["thesis", "coverage"]
PLANNERS = {"thesis": plan_ratios, "coverage": plan_by_coverage}


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """The settings of a plan.

    Attributes:
        reductions: allowed ones, ascending.
        middle: the planner's r_mid.
        measured: reductions at which accuracy is measured for choosing; those between are interpolated.
    """

    reductions: tuple[int, ...]
    middle: int
    measured: tuple[int, ...]
    budget: Budget
    planner: PlannerName = "thesis"


class WarmUp:
    """The backend of a planner: times, fine-tunes and measures models of one task.

    Args:
        plain: the task's network before any fine-tuning (``reduced_nets.task_net``).
        profiling: images that nothing is trained on.
        measured: reductions for :meth:`accuracies`.
        on_progress: called with a line for a person.
    """

    def __init__(
        self,
        plain: ElasticViT,
        store: WarmedModels,
        train: ImageSet,
        profiling: Prepared,
        settings: FineTuneSettings,
        measured: Sequence[int],
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        check_images(train, store.catalogue.class_names)
        self.store = store
        self.soups = SoupCache(store, plain)
        self._plain, self._train, self._profiling = plain, train, profiling
        self._settings, self._measured, self._on_progress = settings, tuple(measured), on_progress
        self._mine: list[int] = []

    @property
    def plain(self) -> ElasticViT:
        """The task's network before any fine-tuning."""
        return self._plain

    @property
    def steps(self) -> int:
        """Of training, per model."""
        return math.ceil(len(self._train) / self._settings.batch_size) * self._settings.epochs

    def cost(self, reduction: int) -> Cost:
        """The model's actual or estimated cost: training steps timed at three reductions, and a line over their
        work."""
        made = self.store.catalogue.model(reduction)
        if made is not None:
            return Cost(made.seconds, made.bytes)
        self._time_steps()
        timed = {int(r): seconds for r, seconds in self.store.catalogue.step_seconds.items()}
        slope, fixed = np.polyfit([self._macs(r) for r in timed], list(timed.values()), 1)
        # Never below what was timed: a line through few points may be.
        seconds = max(float(slope * self._macs(reduction) + fixed), min(timed.values()))
        size = sum(value.numel() * value.element_size() for value in self._plain.state_dict().values())
        return Cost(seconds * self.steps, size)

    def _time_steps(self) -> None:
        """At no reduction, at the one that saves half of the work, and at the largest; once per catalogue."""
        if self.store.catalogue.step_seconds:
            return
        largest = max((*self._measured, 1))
        half = min(range(largest + 1), key=lambda r: abs(self._macs(r) - self._macs(0) / 2))
        for reduction in sorted({0, half, largest}):
            self._on_progress(f"timing a training step at reduction {reduction}")
            seconds = step_seconds(self._net(reduction), self._train, self._settings)
            self.store.record_step(reduction, seconds)

    def _macs(self, reduction: int) -> int:
        net = self._plain
        schedule = reduction_schedule(reduction, net.layers)
        return forward_macs(schedule, net.patches, net.width, net.hidden, protected=net.protected)

    def fine_tune(self, reduction: int) -> Cost:
        """Make the model, continue it, or find it finished."""
        model = self.store.catalogue.model(reduction)
        if model is None:
            net = self._net(reduction)
            state = self.store.training_folder / f"r{reduction}.safetensors"
            done = fine_tune(net, self._train, self._profiling, self._settings, state, self._epoch(reduction))
            model = self.store.add(reduction, net.module.state_dict(), done.seconds, done.accuracies)
            state.unlink(missing_ok=True)
        if reduction not in self._mine:
            self._mine.append(reduction)
        return Cost(model.seconds, model.bytes)

    def accuracy(self, reduction: int) -> float:
        """Accuracy of the best of this backend's models at ``reduction``."""
        return self.share(best_single(self.right(self._mine, reduction)), reduction)

    def accuracies(self, model: int) -> dict[int, float]:
        """Accuracies of one model at ``measured`` and at its own reduction."""
        return {r: self.share(single(model), r) for r in sorted({*self._measured, model})}

    def right(self, models: Sequence[int], reduction: int) -> dict[int, str]:
        """Digits of right answers on the profiling images by model."""
        return {model: self.digits(single(model), reduction) for model in models}

    def share(self, recipe: Recipe, reduction: int) -> float:
        """Of right answers on the profiling images."""
        digits = self.digits(recipe, reduction)
        return digits.count("1") / len(digits)

    def digits(self, recipe: Recipe, reduction: int) -> str:
        """Digits of right answers on the profiling images; measured once, then read."""
        known = self.store.catalogue.right.get(recipe.name, {}).get(str(reduction))
        if known is None:
            known = self.answers(recipe, reduction, self._profiling)
            self.store.record_right(recipe, reduction, known)
        return known

    def answers(self, recipe: Recipe, reduction: int, images: Prepared) -> str:
        """Digits of right answers on any images, measured now."""
        self._on_progress(f"measuring {recipe.name} at reduction {reduction}")
        net = MergingNet(self.soups.net(recipe), reduction_schedule(reduction, self._plain.layers))
        return right_answers(net, images, self._settings)

    def _net(self, reduction: int) -> MergingNet:
        """A fresh copy of the plain network, reduced."""
        return MergingNet(copy.deepcopy(self._plain), reduction_schedule(reduction, self._plain.layers))

    def _epoch(self, reduction: int) -> Callable[[int, float], None]:
        def on_progress(epoch: int, accuracy: float) -> None:
            total = self._settings.epochs
            self._on_progress(
                f"reduction {reduction}: epoch {epoch} / {total}, {100 * accuracy:.1f} % of the profiling images"
            )

        return on_progress


def find_ratio(backend: WarmUp, plan: PlanSettings) -> tuple[int, ...]:
    """Fine-tune the models that the planner chooses; returns the reductions in the order of fine-tuning.

    Raises:
        DataError: the budget does not hold the first two models, or ``middle`` is not allowed.
    """
    return PLANNERS[plan.planner](backend, plan.reductions, plan.middle, plan.budget)


def choose_recipes(
    backend: WarmUp, models: Sequence[int], measured: Sequence[int], settings: EnsembleSettings | None
) -> dict[int, Recipe]:
    """The recipe that serves each of ``measured``; settings None: single models only."""
    chosen = {}
    for reduction in measured:
        right = backend.right(models, reduction)
        if settings is None:
            chosen[reduction] = best_single(right)
            continue

        def answers(recipe: Recipe, reduction: int = reduction) -> str:
            return backend.digits(recipe, reduction)

        chosen[reduction] = choose_recipe(right, answers, settings)
    return chosen


def mean_accuracy(measured: Mapping[int, float], reductions: Sequence[int]) -> float:
    """Mean accuracy over all ``reductions``, with straight lines between the measured ones (Eq. 4.1)."""
    return sum(spread(measured, reductions).values()) / len(reductions)


def check_images(images: ImageSet, class_names: Sequence[str]) -> None:
    """Raises DataError for a class without an image to fine-tune on: its logit would only ever be pushed down."""
    missing = [name for label, name in enumerate(class_names) if label not in set(images.labels.tolist())]
    if len(images) < len(class_names) or missing:
        raise DataError(
            f"{len(images)} training images for {len(class_names)} classes, none of {missing[0] if missing else '?'}: "
            "give at least one of every class, with more images or a larger --train-images"
        )
