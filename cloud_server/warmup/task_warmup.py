"""One task's warm-up from beginning to end: images and a trunk in, warmed models and a serving profile out.

In two steps, so that the user can look at the plan before anything is fine-tuned. All finished work is on disk: after a
kill, the same call continues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedstill.cloud_server.serving.engine.trunk import Trunk
from fedstill.cloud_server.serving.policies.prodigy import warmed_profile
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, profile_to_plain
from fedstill.cloud_server.serving.tasks.prompt_training import extract_features, fit_head
from fedstill.cloud_server.warmup.ensembler import EnsembleSettings, affordable_models
from fedstill.cloud_server.warmup.fine_tuning import FineTuneSettings, Prepared, prepare_images
from fedstill.cloud_server.warmup.reduced_nets import task_net
from fedstill.cloud_server.warmup.timing import reduction_times
from fedstill.cloud_server.warmup.warm_up import (
    PlanSettings,
    WarmUp,
    check_images,
    choose_recipes,
    find_ratio,
)
from fedstill.cloud_server.warmup.warmed_models import Recipe, WarmedModels, single
from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import DataError
from fedstill.common.provenance import hardware
from fedstill.datasets.images.image_tasks import ImageSet, ImageTask
from fedstill.models.vit.elastic_vit import ElasticViT

TIMED_BATCHES = (1, 4, 16)
TIMED_ROUNDS = 3
PROFILE_FILE = "profile.json"

OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a warm-up.

    Attributes:
        fine_tuned: reductions that the planner chose, in its order.
        recipes: per measured reduction, the model or average that serves it.
        profile: the file for the planner that serves.
    """

    fine_tuned: tuple[int, ...]
    recipes: dict[int, Recipe]
    profile: Path


class TaskWarmup:
    """A task made ready: its images loaded, a head fitted on the trunk's plain features, its folder open.

    Args:
        name: of the task in catalogue and profile.
        images: most training and profiling images.
        folder: of the models; an earlier warm-up with the same settings continues in it.

    Raises:
        DataError: images that cannot be used, or a folder that holds a warm-up with other settings.
    """

    def __init__(
        self,
        name: str,
        task: ImageTask,
        trunk: Trunk,
        plan: PlanSettings,
        settings: FineTuneSettings,
        images: tuple[int | None, int],
        folder: Path,
    ) -> None:
        self.name, self.plan, self.folder = name, plan, folder
        self._trunk, self._settings = trunk, settings
        self._train = task.load("train", images[0], settings.seed)
        check_images(self._train, task.class_names)
        profiling = task.load("val", images[1], settings.seed)
        identity = {
            "task": name,
            "trunk": trunk.fingerprint,
            "train_images": len(self._train),
            "profiling_images": len(profiling),
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "seed": settings.seed,
            "preprocess": to_plain(trunk.net.preprocess),
        }
        self.store = WarmedModels(folder, identity, task.class_names)
        self._plain = _with_head(trunk.net, self._train, profiling, len(task.class_names))
        self._profiling: Prepared = prepare_images(profiling, trunk.net.image_size, trunk.net.preprocess)

    def backend(self, on_progress: OnProgress) -> WarmUp:
        """A new backend; each knows only the models that it fine-tuned itself."""
        return WarmUp(
            self._plain,
            self.store,
            self._train,
            self._profiling,
            self._settings,
            self.plan.measured,
            on_progress,
        )

    def run(self, keep_bytes: int | None, on_progress: OnProgress) -> Outcome:
        """Fine-tune, choose, measure, write the profile. keep_bytes: of the models to serve with, if limited.

        Raises:
            DataError: the budget does not hold the first two models, or ``keep_bytes`` not one.
        """
        backend = self.backend(on_progress)
        backend.fine_tune(0)  # to compare with; the planner's own backend does not count it
        chosen = find_ratio(self.backend(on_progress), self.plan)
        models = (0, *chosen)
        kept = models if keep_bytes is None else _affordable(backend, models, keep_bytes)
        recipes = choose_recipes(backend, kept, self.plan.measured, EnsembleSettings())
        self.store.choose(recipes)
        on_progress("timing reductions")
        profile = _serving_profile(backend, self.name, self._trunk.architecture, recipes)
        text = json.dumps(profile_to_plain(profile), indent=1)
        return Outcome(chosen, recipes, replace_text(self.folder / PROFILE_FILE, text))


def _with_head(net: ElasticViT, train: ImageSet, profiling: ImageSet, classes: int) -> ElasticViT:
    """The trunk with a linear probe on its plain features."""
    features = [extract_features(net, some.images) for some in (train, profiling)]
    weight, bias, _ = fit_head((features[0], train.labels), (features[1], profiling.labels), classes)
    return task_net(net, (weight, bias))


def _affordable(backend: WarmUp, models: Sequence[int], keep_bytes: int) -> tuple[int, ...]:
    """The models to serve with. Raises DataError if not even one fits."""
    sizes = {model.reduction: model.bytes for model in backend.store.catalogue.models}
    accuracies = {model: backend.accuracies(model) for model in models}
    shared = set.intersection(*(set(row) for row in accuracies.values()))
    rows = {model: {r: value for r, value in row.items() if r in shared} for model, row in accuracies.items()}
    kept = affordable_models(rows, sizes, keep_bytes)
    if not kept:
        raise DataError(f"--keep-mb {keep_bytes / 1e6:g}: a model takes {min(sizes.values()) / 1e6:.1f} MB")
    return kept


def _serving_profile(backend: WarmUp, task: str, architecture: str, recipes: dict[int, Recipe]) -> Profile:
    """The plain model at every measured reduction, and the chosen model there."""
    times, variant = reduction_times(backend.plain, tuple(recipes), TIMED_BATCHES, TIMED_ROUNDS)
    plain = {
        reduction: Schedule(
            f"-{reduction}" if reduction else "0",
            -reduction,
            *seconds,
            (backend.share(single(0), reduction),),
            2 * TIMED_BATCHES[-1],
        )
        for reduction, seconds in times.items()
    }
    warmed: dict[str, dict[int, float]] = {}
    for reduction, recipe in recipes.items():
        if recipe != single(0):
            warmed.setdefault(recipe.name, {})[reduction] = backend.share(recipe, reduction)
    source = f"{architecture}, {variant}, {hardware()}, warmed up"
    return warmed_profile(task, source, task, plain, warmed)
