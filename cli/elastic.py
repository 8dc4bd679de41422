"""``fedstill elastic``: measure token schedules and prompts on real weights and tasks, for Tables 3.1 and 3.2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.shared.console import console, one_line_errors
from fedstill.cli.shared.options import Architecture, PreprocessChanges, Weights, preprocess_changes
from fedstill.common.paths import VIT_WEIGHTS


def elastic(
    out: Annotated[Path, typer.Option(help="Folder of the measurements.")] = Path("runs") / "elastic",
    tasks: Annotated[str, typer.Option(help="Known image tasks.")] = "cifar10,tinyimagenet100,mnist",
    weights: Weights = VIT_WEIGHTS,
    architecture: Architecture = None,
    preprocess: PreprocessChanges = "",
    train_images: Annotated[int, typer.Option(help="Per task.", min=2)] = 800,
    val_images: Annotated[int, typer.Option(help="Per task.", min=1)] = 200,
    test_images: Annotated[int, typer.Option(help="Per task.", min=1)] = 300,
    prompt_epochs: Annotated[
        int, typer.Option(help="Epochs of prompt training, which is slow; 0: none.", min=0)
    ] = 0,
    prompt_images: Annotated[int, typer.Option(help="Training images of prompts, per task.", min=1)] = 256,
    prompt_learning_rate: Annotated[float, typer.Option(help="Learning rate of prompts.", min=0)] = 0.002,
    seed: Annotated[int, typer.Option(help="Of splits and prompts.")] = 0,
    render: Annotated[bool, typer.Option("--render", help="Show what --out holds; measure nothing.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the results as a page.")] = None,
) -> None:
    """Measure the effect of merging tokens and adding prompts on a ViT's accuracy and speed."""

    with one_line_errors():
        from fedstill.cloud_server.serving.engine.trunk import load_trunk
        from fedstill.common.atomic_files import replace_text
        from fedstill.common.paths import data_path
        from fedstill.datasets.images.image_tasks import find_images
        from fedstill.evaluation.elastic.results import StudySettings, read_study
        from fedstill.evaluation.elastic.study import run_study
        from fedstill.evaluation.elastic.tables import ELASTIC_TARGETS, elastic_page, reproduce_elastic

        if render:
            study = read_study(out)
        else:
            trunk = load_trunk(data_path(weights), architecture, preprocess=preprocess_changes(preprocess))
            chosen = [find_images(name.strip(), None) for name in tasks.split(",")]
            settings = StudySettings(
                train_images,
                val_images,
                test_images,
                prompt_images,
                prompt_epochs,
                prompt_learning_rate,
                seed=seed,
            )
            with console.status("measuring") as status:
                study = run_study(trunk, chosen, settings, out, status.update)
        for target in ELASTIC_TARGETS:
            if target != "table3.1" or study.settings.prompt_epochs:
                console.print(reproduce_elastic(target, study))
        if markdown is not None:
            replace_text(markdown, elastic_page(study))
            console.print(f"page: {markdown}", highlight=False, soft_wrap=True)
