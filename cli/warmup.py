"""``fedstill warmup``: fine-tune a few models of one task under token reduction, for serving with fewer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedstill.cli.shared.console import console, one_line_errors
from fedstill.cli.shared.options import Architecture, PreprocessChanges, Weights, preprocess_changes
from fedstill.common.option_values import whole_numbers
from fedstill.common.paths import VIT_WEIGHTS

if TYPE_CHECKING:
    from fedstill.cloud_server.warmup.planner import Budget
    from fedstill.cloud_server.warmup.preview import Preview
    from fedstill.cloud_server.warmup.task_warmup import TaskWarmup
    from fedstill.cloud_server.warmup.warm_up import PlannerName, PlanSettings
    from fedstill.cloud_server.warmup.warmed_models import Recipe
    from fedstill.models.vit.elastic_vit import ElasticViT

MEASURED = "0,5,10,15,18,20,22,25,30,40,50,100"
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def warmup(
    task: Annotated[str, typer.Option(help="A known image task, or a folder or zip of SPLIT/CLASS/IMAGE.")],
    weights: Weights = VIT_WEIGHTS,
    architecture: Architecture = None,
    preprocess: PreprocessChanges = "",
    budget: Annotated[
        str, typer.Option(help="Limits: any of models=6,time=30m,storage=200MB, with commas.")
    ] = "models=6",
    planner: Annotated[str, typer.Option(help="thesis (Algorithm 4) or coverage.")] = "thesis",
    reductions: Annotated[
        str | None,
        typer.Option(help="Allowed numbers of merged tokens per layer (default: 0 to 25,30,40,50,100)."),
    ] = None,
    middle: Annotated[int, typer.Option(help="The planner's r_mid, one of the reductions.", min=0)] = 20,
    measured: Annotated[str, typer.Option(help="Reductions to measure and serve at.")] = MEASURED,
    epochs: Annotated[int, typer.Option(help="Per model.", min=1)] = 3,
    learning_rate: Annotated[float, typer.Option(help="Of the trunk.", min=0)] = 1e-4,
    train_images: Annotated[int | None, typer.Option(help="At most so many training images.", min=2)] = None,
    profiling_images: Annotated[int, typer.Option(help="At most so many profiling images.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Of the images and their order.")] = 0,
    keep_mb: Annotated[
        float | None,
        typer.Option(help="Most storage for serving, MB: keeps the models that add most per byte.", min=0),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the models (default: runs/warm/TASK); a killed command continues in it."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False,
) -> None:
    """Make a task's model elastic: warmed models for large token reductions, and a profile for serving them."""
    with one_line_errors():
        from fedstill.cloud_server.serving.engine.trunk import load_trunk
        from fedstill.cloud_server.warmup.fine_tuning import FineTuneSettings
        from fedstill.cloud_server.warmup.preview import preview
        from fedstill.cloud_server.warmup.task_warmup import TaskWarmup
        from fedstill.common.errors import ConfigError
        from fedstill.common.paths import data_path
        from fedstill.datasets.images.image_tasks import find_images

        limits = read_budget(budget)
        if learning_rate <= 0:
            raise ConfigError("--learning-rate: must be above 0")
        place = Path(task)
        name = place.stem.lower() if place.exists() else task
        images = find_images(name, place if place.exists() else None)
        trunk = load_trunk(data_path(weights), architecture, preprocess=preprocess_changes(preprocess))
        plan = _plan(trunk.net, reductions, measured, middle, limits, planner)
        settings = FineTuneSettings(epochs, learning_rate=learning_rate, seed=seed)
        folder = out or Path("runs") / "warm" / name
        sizes = (train_images, profiling_images)
        with console.status("a head on plain features") as status:
            warming = TaskWarmup(name, images, trunk, plan, settings, sizes, folder)
            shown = preview(warming.backend(status.update), plan)
        console.print(_preview_table(shown))
        if not yes and not typer.confirm("Start?"):
            raise typer.Exit(0)
        with console.status("warming up") as status:
            outcome = warming.run(None if keep_mb is None else int(keep_mb * 1e6), status.update)
    console.print(_outcome_table(warming, outcome.recipes))
    made = warming.store.catalogue.models
    spent = sum(model.seconds for model in made if model.reduction in outcome.fine_tuned)
    console.print(
        f"fine-tuned at {', '.join(map(str, outcome.fine_tuned))} in {spent:.0f} s of training; "
        f"models: {folder}, profile: {outcome.profile}",
        highlight=False,
        soft_wrap=True,
    )


def _plan(
    net: ElasticViT, reductions: str | None, measured: str, middle: int, limits: Budget, planner: str
) -> PlanSettings:
    """Of the options. Raises ConfigError, DataError."""
    from fedstill.cloud_server.warmup.reductions import THESIS_REDUCTIONS, check_reductions
    from fedstill.cloud_server.warmup.warm_up import PLANNERS, PlanSettings
    from fedstill.common.errors import ConfigError

    if planner not in PLANNERS:
        raise ConfigError(f"--planner {planner!r}: use {' or '.join(PLANNERS)}")
    wanted = THESIS_REDUCTIONS if reductions is None else whole_numbers("--reductions", reductions)
    allowed = check_reductions(wanted, net.layers, net.patches)
    grid = check_reductions(whole_numbers("--measured", measured), net.layers, net.patches)
    if middle not in allowed[:-1]:
        raise ConfigError(f"--middle {middle}: is not one of the allowed reductions below the largest")
    return PlanSettings(allowed, middle, grid, limits, cast("PlannerName", planner))


def read_budget(text: str) -> Budget:
    """``models=6,time=30m,storage=200MB``, any of them. Raises DataError showing the form."""
    from fedstill.cloud_server.warmup.planner import Budget
    from fedstill.common.errors import DataError

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


def _preview_table(shown: Preview) -> Table:
    grid = Table(box=SIMPLE_HEAD, title="Plan")
    for heading in ("model", "training", "storage", ""):
        grid.add_column(heading, justify="left" if heading in ("model", "") else "right")
    for model in shown.models:
        grid.add_row(
            f"reduction {model.reduction}" if model.reduction else "no reduction",
            f"{model.cost.seconds:.0f} s",
            f"{model.cost.bytes / 1e6:.1f} MB",
            "made already" if model.made else model.note,
        )
    grid.caption = (
        f"Timed here, {shown.steps} steps per model; measuring comes on top. In all at most about "
        f"{shown.most_seconds / 60:.1f} minutes of training for up to {shown.most_models} models."
    )
    return grid


def _outcome_table(warming: TaskWarmup, recipes: dict[int, Recipe]) -> Table:
    """The model or average that serves each reduction, and its accuracy."""
    from fedstill.cloud_server.warmup.warmed_models import single

    backend = warming.backend(lambda _: None)
    grid = Table(box=SIMPLE_HEAD, title="Warmed models, on the profiling images")
    for heading in ("reduction", "served with", "accuracy", "without warm-up"):
        grid.add_column(heading, justify="left" if heading == "served with" else "right")
    for reduction, recipe in recipes.items():
        shares = (backend.share(recipe, reduction), backend.share(single(0), reduction))
        grid.add_row(str(reduction), recipe.name, *(f"{100 * share:.1f} %" for share in shares))
    return grid
