"""Warm-up on real tasks: vanilla, Maxprune, Prodigy, soups and Exhaustive on the same images (thesis Section 4.6).

Everything is chosen on profiling images and reported on test images. Every finished model and (task, seed) is on disk,
so a killed command continues where it stopped. Weights are deleted once their task and seed is done.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from fedstill.cloud_server.serving.engine.trunk import Trunk
from fedstill.cloud_server.serving.tasks.prompt_training import extract_features, fit_head
from fedstill.cloud_server.warmup.ensembler import EnsembleSettings, printed_recipe
from fedstill.cloud_server.warmup.fine_tuning import FineTuneSettings, Prepared, prepare_images
from fedstill.cloud_server.warmup.planner import Budget
from fedstill.cloud_server.warmup.reduced_nets import task_net
from fedstill.cloud_server.warmup.reductions import check_reductions, reduction_schedule
from fedstill.cloud_server.warmup.soups import SoupCache
from fedstill.cloud_server.warmup.timing import reduction_times
from fedstill.cloud_server.warmup.warm_up import PlannerName, PlanSettings, WarmUp, choose_recipes, find_ratio
from fedstill.cloud_server.warmup.warmed_models import Recipe, WarmedModels, single
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.provenance import git_revision, hardware
from fedstill.datasets.images.image_tasks import ImageTask
from fedstill.datasets.loads.arrivals import Times
from fedstill.evaluation.results import ResultsError
from fedstill.evaluation.warmup.results import (
    STUDY_FILE,
    BatchTime,
    ModelRow,
    SoupTime,
    SystemRow,
    TaskRun,
    WarmupSettings,
    WarmupStudy,
    read_plain,
    write_plain,
)
from fedstill.evaluation.warmup.serving import THESIS_OBJECTIVE, serve, time_scale
from fedstill.models.vit.elastic_vit import ElasticViT

Told = Callable[[str], None]
TIMED_BATCHES = (1, 4, 16)
TIMED_ROUNDS = 3
SOUP_ROUNDS = 9
SOUP_BATCH, SOUP_CLASSES, SOUP_MODELS = 8, 10, (10, 20)
BLENDS = ((0.5, 0.5), (0.1, 0.9), (0.2, 0.8))
"""Table 4.1: weights of the models fine-tuned at 10 and 20, served at 15."""


@dataclass(frozen=True, slots=True)
class _Times:
    """The stored timing: the engine's variant, and times by reduction."""

    variant: str
    times: dict[str, BatchTime]


@dataclass(frozen=True, slots=True)
class _Soups:
    """The stored timing of soups."""

    soups: tuple[SoupTime, ...]


def run_warmup_study(
    trunk: Trunk,
    tasks: Sequence[ImageTask],
    settings: WarmupSettings,
    out: Path,
    azure: Times | None,
    on_progress: Told,
) -> WarmupStudy:
    """Measure everything and write OUT/warmup.json.

    azure: arrivals of a real trace; None leaves that load out. on_progress: called with a line for a person.

    Raises:
        DataError: reductions that are the same forward pass, images that cannot be used.
        ResultsError: ``out`` holds a study of other settings.
    """
    net = trunk.net
    check_reductions(settings.grid, net.layers, net.patches)
    check_reductions(settings.reductions, net.layers, net.patches)
    started = perf_counter()
    _check_folder(out, settings)
    times, variant = _times(net, settings.grid, out, on_progress)
    soups = _soups(trunk, settings.grid, out, on_progress)
    runs = []
    for seed in range(settings.seeds):
        for task in tasks:
            path = out / f"{task.name}-{seed}.json"
            if not path.exists():
                write_plain(path, _run(trunk, task, seed, settings, out / f"{task.name}-{seed}", on_progress))
                shutil.rmtree(out / f"{task.name}-{seed}", ignore_errors=True)
            run = read_plain(TaskRun, path)
            served = serve(task.name, run.systems, times, settings.serving_seconds, azure, seed, on_progress)
            runs.append(replace(run, served=served))
    study = WarmupStudy(
        architecture=trunk.architecture,
        variant=variant,
        settings=settings,
        times={str(reduction): time for reduction, time in times.items()},
        objective=THESIS_OBJECTIVE * time_scale(times),
        runs=tuple(runs),
        soups=soups,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
        threads=torch.get_num_threads(),
        versions={name: version(name) for name in ("torch", "timm", "numpy")},
        git=git_revision(),
        minutes=(perf_counter() - started) / 60,
    )
    write_plain(out / STUDY_FILE, study)
    return study


def _run(
    trunk: Trunk,
    task: ImageTask,
    seed: int,
    settings: WarmupSettings,
    folder: Path,
    on_progress: Told,
) -> TaskRun:
    def say(line: str) -> None:
        on_progress(f"{task.name}, seed {seed}: {line}")

    say("a head on plain features")
    train = task.load("train", settings.train_images, seed)
    val = task.load("val", settings.profiling_images, seed)
    net = trunk.net
    test = prepare_images(task.load("test", settings.test_images, seed), net.image_size, net.preprocess)
    features = [extract_features(net, images.images) for images in (train, val)]
    weight, bias, head_accuracy = fit_head(
        (features[0], train.labels), (features[1], val.labels), len(task.class_names)
    )
    plain = task_net(net, (weight, bias))
    tuning = FineTuneSettings(
        settings.epochs,
        settings.batch_size,
        settings.learning_rate,
        patience=settings.epochs,
        seed=seed,
    )
    identity = {
        "task": task.name,
        "seed": seed,
        "trunk": trunk.fingerprint,
        "train_images": settings.train_images,
        "epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "preprocess": to_plain(net.preprocess),
    }
    store = WarmedModels(folder, identity, task.class_names)
    profiling = prepare_images(val, net.image_size, net.preprocess)

    def backend() -> WarmUp:
        return WarmUp(plain, store, train, profiling, tuning, settings.grid, say)

    everyone = backend()
    for reduction in settings.grid:
        everyone.fine_tune(reduction)
    chosen = {
        "prodigy": _plan(backend(), settings, settings.reductions, "thesis"),
        "coverage": _plan(backend(), settings, settings.grid, "coverage"),
    }
    systems = _systems(everyone, chosen, settings, test)
    catalogue = store.catalogue
    return TaskRun(
        task=task.name,
        seed=seed,
        classes=len(task.class_names),
        head_accuracy=head_accuracy,
        models=tuple(ModelRow(m.reduction, m.seconds, m.accuracies, m.bytes) for m in catalogue.models),
        matrix={
            str(model): {
                str(r): value for r, value in everyone.accuracies(model).items() if r in settings.grid
            }
            for model in settings.grid
        },
        chosen=chosen,
        systems=systems,
        blends=_blends(everyone, test, settings.grid),
        served=(),
    )


def _plan(
    backend: WarmUp, settings: WarmupSettings, reductions: tuple[int, ...], planner: PlannerName
) -> tuple[int, ...]:
    middle = settings.middle if settings.middle in reductions else reductions[len(reductions) // 2]
    budget = Budget(models=settings.models)
    return find_ratio(backend, PlanSettings(reductions, middle, settings.grid, budget, planner))


def _systems(
    backend: WarmUp, chosen: Mapping[str, tuple[int, ...]], settings: WarmupSettings, test: Prepared
) -> tuple[SystemRow, ...]:
    """Each system's recipe per grid reduction, and its accuracy on the test images."""
    grid, prodigy = settings.grid, chosen["prodigy"]
    printed = {}
    for reduction in grid:
        right = backend.right(prodigy, reduction)
        printed[reduction] = printed_recipe({m: d.count("1") / len(d) for m, d in right.items()})
    plans: dict[str, tuple[tuple[int, ...], dict[int, Recipe]]] = {
        "vanilla": ((0,), dict.fromkeys(grid, single(0))),
        "maxprune": ((grid[-1],), dict.fromkeys(grid, single(grid[-1]))),
        "prodigy": (prodigy, choose_recipes(backend, prodigy, grid, None)),
        "printed": (prodigy, printed),
        "soup": (prodigy, choose_recipes(backend, prodigy, grid, EnsembleSettings())),
        "coverage": (chosen["coverage"], choose_recipes(backend, chosen["coverage"], grid, None)),
        "exhaustive": (grid, choose_recipes(backend, grid, grid, None)),
    }
    known: dict[tuple[str, int], str] = {}
    rows = []
    for name, (models, recipes) in plans.items():
        for reduction, recipe in recipes.items():
            if (recipe.name, reduction) not in known:
                known[recipe.name, reduction] = backend.answers(recipe, reduction, test)
        profiled = {str(r): backend.digits(recipe, r) for r, recipe in recipes.items()}
        rows.append(
            SystemRow(
                name,
                models,
                {str(r): recipe.name for r, recipe in recipes.items()},
                {str(r): known[recipe.name, r] for r, recipe in recipes.items()},
                {r: digits.count("1") / len(digits) for r, digits in profiled.items()},
            )
        )
    return tuple(rows)


def _blends(backend: WarmUp, test: Prepared, grid: Sequence[int]) -> dict[str, float]:
    """Table 4.1, if the grid has its models."""
    if not {10, 15, 20} <= set(grid):
        return {}
    recipes = [single(model) for model in (10, 15, 20)]
    recipes += [Recipe({"10": low, "20": high}) for low, high in BLENDS]
    found = {recipe.name: backend.answers(recipe, 15, test) for recipe in recipes}
    return {name: digits.count("1") / len(digits) for name, digits in found.items()}


def _soups(trunk: Trunk, grid: Sequence[int], out: Path, on_progress: Told) -> tuple[SoupTime, ...]:
    """Time of a soup; like that of a batch it depends on neither task nor weights, so it is measured once."""
    path = out / "soups.json"
    if not path.exists():
        on_progress("timing soups")
        with tempfile.TemporaryDirectory() as folder:
            write_plain(path, _Soups(_soup_times(trunk.net, grid, Path(folder))))
    return read_plain(_Soups, path).soups


@torch.inference_mode()
def _soup_times(net: ElasticViT, grid: Sequence[int], folder: Path) -> tuple[SoupTime, ...]:
    """A soup of two models in memory against one batch's forward pass, in turn; at every fourth reduction."""
    plain = task_net(net, (torch.zeros(SOUP_CLASSES, net.width), torch.zeros(SOUP_CLASSES)))
    plain.eval().requires_grad_(False)
    store = WarmedModels(folder, {}, tuple(map(str, range(SOUP_CLASSES))))
    for model in SOUP_MODELS:
        store.add(model, plain.state_dict(), 0.0, ())
    images = torch.zeros(SOUP_BATCH, 3, net.image_size, net.image_size)
    cache = SoupCache(store, plain, capacity=1)
    rows = []
    for reduction in dict.fromkeys((grid[0], *grid[3::4])):
        schedule = reduction_schedule(reduction, net.layers)
        soups, forwards = [], []
        for turn in range(SOUP_ROUNDS + 1):
            # Another recipe each time, so that it is computed and not cached.
            share = 0.3 + 0.04 * turn
            started = perf_counter()
            cache.net(Recipe(dict(zip(map(str, SOUP_MODELS), (share, 1 - share), strict=True))))
            between = perf_counter()
            plain(images, schedule)
            if turn:  # the first reads the models from disk
                soups.append(between - started)
                forwards.append(perf_counter() - between)
        rows.append(SoupTime(median(soups), SOUP_BATCH, reduction, median(forwards)))
    return tuple(rows)


def _times(
    net: ElasticViT, grid: Sequence[int], out: Path, on_progress: Told
) -> tuple[dict[int, BatchTime], str]:
    """Affine time of every grid reduction; it does not depend on task or weights, so it is measured once."""
    path = out / "times.json"
    if path.exists():
        kept = read_plain(_Times, path)
        return {int(r): time for r, time in kept.times.items()}, kept.variant
    on_progress("timing reductions")
    measured, variant = reduction_times(net, grid, TIMED_BATCHES, TIMED_ROUNDS)
    times = {reduction: BatchTime(*seconds) for reduction, seconds in measured.items()}
    write_plain(path, _Times(variant, {str(r): time for r, time in times.items()}))
    return times, variant


def _check_folder(out: Path, settings: WarmupSettings) -> None:
    """One folder, one study; more seeds may be added to it."""
    path = out / "settings.json"
    if path.exists():
        kept = read_plain(WarmupSettings, path)
        if replace(kept, seeds=settings.seeds, tasks=settings.tasks) != settings:
            raise ResultsError(
                f"{out}: holds a study of other settings: choose another --out, or repeat them"
            )
    write_plain(path, settings)
