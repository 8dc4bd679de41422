"""``fedstill warmup-study``: the gain of token-reduction warm-up, for chapter 4's tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.shared.console import console, one_line_errors, typed_command
from fedstill.cli.shared.options import Architecture, PreprocessChanges, Weights, preprocess_changes
from fedstill.common.paths import VIT_WEIGHTS

GRID = "0,10,15,20,25,30,40,50,100"


def warmup_study(
    out: Annotated[
        Path, typer.Option(help="Folder of the measurements; a killed study continues in it.")
    ] = Path("runs") / "warmup-study",
    tasks: Annotated[str, typer.Option(help="Known image tasks.")] = "cifar10,mnist",
    weights: Weights = VIT_WEIGHTS,
    architecture: Architecture = None,
    preprocess: PreprocessChanges = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds.", min=1)] = 3,
    train_images: Annotated[int, typer.Option(help="Per task.", min=2)] = 512,
    profiling_images: Annotated[int, typer.Option(help="Per task, to choose by.", min=2)] = 160,
    test_images: Annotated[int, typer.Option(help="Per task.", min=1)] = 200,
    epochs: Annotated[int, typer.Option(help="Per model.", min=1)] = 3,
    batch_size: Annotated[int, typer.Option(help="Of training.", min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of the trunk.", min=0)] = 1e-4,
    models: Annotated[int, typer.Option(help="The planners' budget.", min=2)] = 6,
    middle: Annotated[int, typer.Option(help="The planner's r_mid.", min=0)] = 20,
    grid: Annotated[
        str, typer.Option(help="Reductions at which Exhaustive fine-tunes and everything is measured.")
    ] = GRID,
    serving_seconds: Annotated[float, typer.Option(help="Of the simulated loads.", min=1)] = 600.0,
    render: Annotated[bool, typer.Option("--render", help="Show what --out holds; measure nothing.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the results as a page.")] = None,
) -> None:
    """Compare vanilla, Maxprune, Prodigy, soups and Exhaustive on the same images and loads."""

    with one_line_errors():
        from fedstill.common.atomic_files import replace_text
        from fedstill.evaluation.elastic.tables import sheet_grid
        from fedstill.evaluation.warmup.results import STUDY_FILE, WarmupSettings, WarmupStudy, read_plain
        from fedstill.evaluation.warmup.tables import summary, warmup_page

        if render:
            study = read_plain(WarmupStudy, out / STUDY_FILE)
        else:
            from fedstill.cloud_server.serving.engine.trunk import load_trunk
            from fedstill.cloud_server.warmup.reductions import THESIS_REDUCTIONS
            from fedstill.common.option_values import whole_numbers
            from fedstill.common.paths import data_path
            from fedstill.datasets.images.image_tasks import find_images
            from fedstill.datasets.loads.trace_files import read_trace
            from fedstill.evaluation.serving.virtual import AZURE_FILE
            from fedstill.evaluation.warmup.study import run_warmup_study

            trunk = load_trunk(data_path(weights), architecture, preprocess=preprocess_changes(preprocess))
            settings = WarmupSettings(
                tuple(name.strip() for name in tasks.split(",")),
                train_images,
                profiling_images,
                test_images,
                epochs,
                batch_size,
                learning_rate,
                THESIS_REDUCTIONS,
                middle,
                models,
                whole_numbers("--grid", grid),
                seeds,
                serving_seconds,
                trunk.net.preprocess,
            )
            chosen = [find_images(name, None) for name in settings.tasks]
            azure = read_trace(data_path(str(AZURE_FILE)))
            with console.status("measuring") as status:
                study = run_warmup_study(trunk, chosen, settings, out, azure, status.update)
        console.print(sheet_grid(summary(study)))
        if markdown is not None:
            from fedstill.evaluation.warmup.plots import save_warmup_figures

            pictures = save_warmup_figures(study, markdown.parent / markdown.stem)
            replace_text(markdown, warmup_page(study, typed_command(), pictures))
            console.print(f"page: {markdown}", highlight=False, soft_wrap=True)
