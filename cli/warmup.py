"""``fedstill warmup``: fine-tune a few models of one task under token reduction, so that it can be served with less."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedstill.cli.options import Architecture, Weights
from fedstill.common.option_values import whole_numbers
from fedstill.common.paths import VIT_WEIGHTS

if TYPE_CHECKING:
    from fedstill.cloud_server.serving.scheduling.profile import Profile
    from fedstill.cloud_server.warmup.planner import Budget
    from fedstill.cloud_server.warmup.warm_up import PlannerName, WarmUp
    from fedstill.cloud_server.warmup.warmed_models import Recipe

MEASURED = "0,5,10,15,18,20,22,25,30,40,50,100"
TIMED_BATCHES = (1, 4, 16)
TIMED_ROUNDS = 3
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
console = Console()


def warmup(
    task: Annotated[str, typer.Option(help="A known image task, or a folder or zip of SPLIT/CLASS/IMAGE.")],
    weights: Weights = VIT_WEIGHTS,
    architecture: Architecture = None,
    budget: Annotated[
        str, typer.Option(help="What it may take: of models=6,time=30m,storage=200MB any, with commas.")
    ] = "models=6",
    planner: Annotated[str, typer.Option(help="thesis (Algorithm 4) or coverage.")] = "thesis",
    reductions: Annotated[
        str | None,
        typer.Option(help="Tokens merged per layer that are allowed (default: 0 to 25,30,40,50,100)."),
    ] = None,
    middle: Annotated[int, typer.Option(help="The planner's r_mid, one of the reductions.", min=0)] = 20,
    measured: Annotated[str, typer.Option(help="Reductions to measure and serve at.")] = MEASURED,
    epochs: Annotated[int, typer.Option(help="Per model.", min=1)] = 3,
    learning_rate: Annotated[float, typer.Option(help="Of the trunk.", min=0)] = 1e-4,
    train_images: Annotated[int | None, typer.Option(help="Learn from at most so many.", min=2)] = None,
    profiling_images: Annotated[int, typer.Option(help="Choose by at most so many.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Of the images and their order.")] = 0,
    keep_mb: Annotated[
        float | None,
        typer.Option(help="Serve with at most so much storage: the models that add most per byte.", min=0),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the models go (default: runs/warm/TASK); the command goes on in it."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False,
) -> None:
    """Make a task's model elastic: warmed models for large token reductions, and a profile to serve them by."""
    from fedstill.cli.console import one_line_errors

    with one_line_errors():
        from fedstill.cloud_server.serving.engine.trunk import load_trunk
        from fedstill.cloud_server.serving.tasks.prompt_training import extract_features, fit_head
        from fedstill.cloud_server.warmup.ensembler import EnsembleSettings
        from fedstill.cloud_server.warmup.fine_tuning import FineTuneSettings, prepare_images
        from fedstill.cloud_server.warmup.reduced_nets import task_net
        from fedstill.cloud_server.warmup.reductions import THESIS_REDUCTIONS, check_reductions
        from fedstill.cloud_server.warmup.warm_up import (
            PLANNERS,
            PlanSettings,
            WarmUp,
            check_images,
            choose_recipes,
            find_ratio,
        )
        from fedstill.cloud_server.warmup.warmed_models import WarmedModels
        from fedstill.common.atomic_files import replace_text
        from fedstill.common.errors import ConfigError
        from fedstill.common.paths import data_path
        from fedstill.datasets.images.image_tasks import find_images

        limits = read_budget(budget)
        if planner not in PLANNERS:
            raise ConfigError(f"--planner {planner!r}: use {' or '.join(PLANNERS)}")
        if learning_rate <= 0:
            raise ConfigError("--learning-rate: must be above 0")
        place = Path(task)
        name = place.stem.lower() if place.exists() else task
        images = find_images(name, place if place.exists() else None)
        trunk = load_trunk(data_path(weights), architecture)
        net = trunk.net
        wanted = THESIS_REDUCTIONS if reductions is None else whole_numbers("--reductions", reductions)
        allowed = check_reductions(wanted, net.layers, net.patches)
        grid = check_reductions(whole_numbers("--measured", measured), net.layers, net.patches)
        if middle not in allowed[:-1]:
            raise ConfigError(f"--middle {middle}: is not one of the allowed reductions below the largest")
        train = images.load("train", train_images, seed)
        check_images(train, images.class_names)
        val = images.load("val", profiling_images, seed)
        folder = out or Path("runs") / "warm" / name
        identity = {
            "task": name,
            "trunk": trunk.fingerprint,
            "train_images": len(train),
            "profiling_images": len(val),
            "epochs": epochs,
            "learning_rate": learning_rate,
            "seed": seed,
        }
        store = WarmedModels(folder, identity, images.class_names)
        with console.status("a head on plain features") as status:
            features = [extract_features(net, some.images) for some in (train, val)]
            weight, bias, _ = fit_head(
                (features[0], train.labels), (features[1], val.labels), len(images.class_names)
            )
            plain = task_net(net, (weight, bias))
            settings = FineTuneSettings(epochs, learning_rate=learning_rate, seed=seed)
            profiling = prepare_images(val, net.image_size)
            backend = WarmUp(plain, store, train, profiling, settings, grid, status.update)
            preview = _preview(backend, allowed, middle, limits)
        console.print(preview)
        if not yes and not typer.confirm("Start?"):
            raise typer.Exit(0)
        with console.status("warming up") as status:
            backend = WarmUp(plain, store, train, profiling, settings, grid, status.update)
            backend.fine_tune(0)
            planning = WarmUp(plain, store, train, profiling, settings, grid, status.update)
            chosen = find_ratio(
                planning, PlanSettings(allowed, middle, grid, limits, cast("PlannerName", planner))
            )
            kept = (0, *chosen) if keep_mb is None else _kept(backend, (0, *chosen), keep_mb)
            recipes = choose_recipes(backend, kept, grid, EnsembleSettings())
            store.choose(recipes)
            profile = _profile(backend, name, trunk.architecture, recipes, status.update)
        from fedstill.cloud_server.serving.scheduling.profile import profile_to_plain

        path = replace_text(folder / "profile.json", json.dumps(profile_to_plain(profile), indent=1))
    console.print(_outcome(backend, recipes))
    spent = sum(model.seconds for model in store.catalogue.models if model.reduction in chosen)
    console.print(
        f"fine-tuned at {', '.join(map(str, chosen))} in {spent:.0f} s of training; models: {folder}, profile: {path}",
        highlight=False,
        soft_wrap=True,
    )


def read_budget(text: str) -> Budget:
    """``models=6,time=30m,storage=200MB``, any of them. Raises DataError showing the form."""
    from fedstill.cloud_server.warmup.planner import Budget
    from fedstill.datasets.audiovisual.clip import DataError

    found: dict[str, float] = {}
    try:
        for part in text.split(","):
            key, _, value = part.strip().partition("=")
            if key in found or key not in ("models", "time", "storage"):
                raise ValueError
            if key == "time":
                found[key] = float(value[:-1]) * UNITS[value[-1]]
            elif key == "storage":
                if not value.endswith("MB"):
                    raise ValueError
                found[key] = float(value[:-2]) * 1e6
            else:
                found[key] = int(value)
    except (ValueError, KeyError, IndexError):
        raise DataError(
            f"--budget {text!r}: write models=6,time=30m,storage=200MB, or some of these (time in s, m or h)"
        ) from None
    size, models = found.get("storage"), found.get("models")
    return Budget(
        found.get("time"), None if size is None else int(size), None if models is None else int(models)
    )


def _preview(backend: WarmUp, allowed: tuple[int, ...], middle: int, limits: Budget) -> Table:
    """What the plan begins with, what each further model will cost, and what the whole may cost at most."""
    grid = Table(box=SIMPLE_HEAD, title="Plan")
    for heading in ("model", "training", "storage", ""):
        grid.add_column(heading, justify="left" if heading in ("model", "") else "right")

    def add(label: str, reduction: int, note: str) -> None:
        cost = backend.cost(reduction)
        made = "made already" if backend.store.catalogue.model(reduction) else note
        grid.add_row(label, f"{cost.seconds:.0f} s", f"{cost.bytes / 1e6:.1f} MB", made)

    add("no reduction", 0, "to compare with, not in the budget")
    add(f"reduction {middle}", middle, "first")
    add(f"reduction {allowed[-1]}", allowed[-1], "first")
    between = [r for r in allowed if middle < r < allowed[-1]]
    for reduction in dict.fromkeys((*between[:1], *between[-1:])):
        add(f"reduction {reduction}", reduction, "possible: the planner decides as accuracies come in")
    first = [backend.cost(r) for r in (middle, allowed[-1])]
    dearest = max(backend.cost(r).seconds for r in allowed if r >= middle)
    count = limits.models or len(allowed)
    most = sum(cost.seconds for cost in first) + max(0, count - 2) * dearest
    bound = most if limits.seconds is None else min(most, limits.seconds)
    grid.caption = (
        f"Timed here, {backend.steps} steps per model; measuring comes on top. In all at most about {bound / 60:.1f} "
        f"minutes of training for up to {count} models."
    )
    return grid


def _kept(backend: WarmUp, models: tuple[int, ...], megabytes: float) -> tuple[int, ...]:
    """The models to serve with. Raises DataError where not even one fits."""
    from fedstill.cloud_server.warmup.ensembler import affordable_models
    from fedstill.datasets.audiovisual.clip import DataError

    sizes = {model.reduction: model.bytes for model in backend.store.catalogue.models}
    accuracies = {model: backend.accuracies(model) for model in models}
    shared = set.intersection(*(set(row) for row in accuracies.values()))
    rows = {model: {r: value for r, value in row.items() if r in shared} for model, row in accuracies.items()}
    kept = affordable_models(rows, sizes, int(megabytes * 1e6))
    if not kept:
        raise DataError(f"--keep-mb {megabytes:g}: a model takes {min(sizes.values()) / 1e6:.1f} MB")
    return kept


def _profile(
    backend: WarmUp,
    task: str,
    architecture: str,
    recipes: dict[int, Recipe],
    on_progress: Callable[[str], None],
) -> Profile:
    """The serving profile: the plain model at every measured reduction, and what was chosen there."""
    from fedstill.cloud_server.serving.policies.prodigy import warmed_profile
    from fedstill.cloud_server.serving.scheduling.profile import Schedule
    from fedstill.cloud_server.warmup.timing import reduction_times
    from fedstill.cloud_server.warmup.warmed_models import single
    from fedstill.common.provenance import hardware

    on_progress("timing reductions")
    times, variant = reduction_times(backend.plain, tuple(recipes), TIMED_BATCHES, TIMED_ROUNDS)

    def accuracy(recipe: Recipe, reduction: int) -> float:
        digits = backend.digits(recipe, reduction)
        return digits.count("1") / len(digits)

    plain = {
        reduction: Schedule(
            f"-{reduction}" if reduction else "0",
            -reduction,
            *seconds,
            (accuracy(single(0), reduction),),
            2 * TIMED_BATCHES[-1],
        )
        for reduction, seconds in times.items()
    }
    warmed: dict[str, dict[int, float]] = {}
    for reduction, recipe in recipes.items():
        if recipe != single(0):
            warmed.setdefault(recipe.name, {})[reduction] = accuracy(recipe, reduction)
    source = f"{architecture}, {variant}, {hardware()}, warmed up"
    return warmed_profile(task, source, task, plain, warmed)


def _outcome(backend: WarmUp, recipes: dict[int, Recipe]) -> Table:
    """What each reduction is served with, and what that is worth."""
    from fedstill.cloud_server.warmup.warmed_models import single

    grid = Table(box=SIMPLE_HEAD, title="Warmed models, on the profiling images")
    for heading in ("reduction", "served with", "accuracy", "without warm-up"):
        grid.add_column(heading, justify="left" if heading == "served with" else "right")
    for reduction, recipe in recipes.items():
        shares = [
            digits.count("1") / len(digits)
            for digits in (backend.digits(recipe, reduction), backend.digits(single(0), reduction))
        ]
        grid.add_row(str(reduction), recipe.name, *(f"{100 * share:.1f} %" for share in shares))
    return grid
