"""``fedstill tasks``: the tasks of the serving tier: add from images, list, remove, activate, profile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedstill.cli.shared.console import console, one_line_errors
from fedstill.cli.shared.image_lines import images_lines
from fedstill.cli.shared.options import (
    DEFAULT_REGISTRY,
    Architecture,
    Backend,
    BackendChoice,
    Database,
    PreprocessChanges,
    RegistryFolder,
    Weights,
    preprocess_changes,
)
from fedstill.cli.shared.progress import text_bar
from fedstill.cli.shared.wide_table import print_rows
from fedstill.common.option_values import as_mistake, pair, whole_numbers
from fedstill.common.paths import VIT_WEIGHTS

if TYPE_CHECKING:
    from fedstill.cloud_server.serving.engine.profiler import ScheduleProfile
    from fedstill.cloud_server.serving.scheduling.profile import Profile
    from fedstill.cloud_server.serving.tasks.registry import TaskVersion

TRUNK_SHOWN = 8
"""Digits of a trunk's fingerprint, as in the server's log."""
HOLDS = 1.25
"""Factor between times of today and of a profile within which it holds."""

app = typer.Typer(help="Tasks of the serving tier: add, list, remove, profile.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="cifar10, tinyimagenet100, mnist, emotion_faces, or your own.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder or zip with train/CLASS/IMAGE and test/CLASS/IMAGE.")
    ] = None,
    registry: RegistryFolder = DEFAULT_REGISTRY,
    database: Database = "",
    weights: Weights = VIT_WEIGHTS,
    architecture: Architecture = None,
    preprocess: PreprocessChanges = "",
    train_images: Annotated[int | None, typer.Option(help="At most so many training images.", min=2)] = None,
    val_images: Annotated[int | None, typer.Option(help="At most so many validation images.", min=1)] = None,
    prompts: Annotated[
        str, typer.Option(help="Prompt numbers to train in turn, such as 2,4; empty for none.")
    ] = "",
    epochs: Annotated[int, typer.Option(help="Passes per prompt number.", min=1)] = 50,
    own_head: Annotated[
        bool,
        typer.Option("--own-head", help="Serve the head of imported weights; images only measure it."),
    ] = False,
    embedding: Annotated[
        bool,
        typer.Option(
            "--embedding", help="Answer the trunk's feature, without a head; images only measure it."
        ),
    ] = False,
    latency_ms: Annotated[float, typer.Option(help="Of queries that name none.", min=0)] = 600.0,
    utility: Annotated[float, typer.Option(help="Of queries that name none.", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of split, images and prompts.")] = 0,
) -> None:
    """Train a task's head (and prompts) on the frozen trunk and register it as a new version."""
    with one_line_errors():
        from fedstill.cloud_server.serving.engine.trunk import load_trunk
        from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings, LearntTask, learn_task
        from fedstill.cloud_server.serving.tasks.prompt_training import PromptSettings
        from fedstill.cloud_server.serving.tasks.registry import TaskRegistry, check_new_version
        from fedstill.cloud_server.serving.tasks.untrained import measured_accuracy, own_task
        from fedstill.common.errors import ConfigError
        from fedstill.common.paths import data_path
        from fedstill.datasets.images.image_tasks import find_images
        from fedstill.models.vit.task_bank import embedding_task

        counts = whole_numbers("--prompts", prompts)
        if own_head and embedding:
            raise ConfigError("--embedding: has no head; drop --own-head")
        untrained = own_head or embedding
        if untrained and (counts or train_images is not None):
            raise ConfigError("--own-head and --embedding train nothing: drop --prompts and --train-images")
        trained = None
        if counts:
            with as_mistake("--prompts"):
                trained = PromptSettings(counts, epochs)
        task = None if untrained and images is None else find_images(name, images)
        check_new_version(name, latency_ms, utility)
        trunk = load_trunk(data_path(weights), architecture, preprocess=preprocess_changes(preprocess))
        own = own_task(trunk) if own_head else None
        if embedding:
            own = embedding_task(trunk.net.width, trunk.net.preprocess)
        known = task if own is None or task is None else task.with_classes(own.class_names)
        store = TaskRegistry(registry, database or None)
        with text_bar(f"decoding the images of {name}") as (tell, count):
            if own is not None:
                measured = known and measured_accuracy(trunk.net, own, known, val_images, seed, count)
                learnt = LearntTask(own, measured or 0.0)
            else:
                assert known is not None  # a head is learnt from images
                settings = LearnSettings(train_images, val_images, trained, seed)
                learnt = learn_task(trunk.net, known, settings, tell, count)
        version = store.register(
            name,
            learnt.parameters,
            trunk.fingerprint,
            latency_ms=latency_ms,
            utility=utility,
            accuracy=learnt.accuracy,
        )
        store.close()
        shown = images_lines(task) if task is not None else []
    for line in shown:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    right = f"{100 * version.accuracy:.1f} % of the validation images right"
    console.print(
        f"{name} version {version.version}: {_answer(version)}, "
        f"{right if task is not None else 'not measured (--images)'}",
        highlight=False,
    )


@app.command(name="list")
def list_(
    registry: RegistryFolder = DEFAULT_REGISTRY,
    database: Database = "",
    everything: Annotated[bool, typer.Option("--all", help="Also versions that are not served.")] = False,
) -> None:
    """Show the tasks that are served."""
    with one_line_errors():
        from fedstill.cloud_server.serving.tasks.registry import open_registry

        store = open_registry(registry, database)
        versions = [version for version in store.versions() if version.active or everything]
        store.close()
    if not versions:
        console.print("no tasks; add one with: fedstill tasks add NAME")
        return
    heads = ("task", "no.", "served", "classes", "prompts", "query", "accuracy", "trunk", "added")
    print_rows(console, heads, [_row(version) for version in versions])


def _answer(version: TaskVersion) -> str:
    if version.output == "embedding":
        return "embedding"
    return f"{len(version.class_names)} {'labels' if version.output == 'labels' else 'classes'}"


def _row(version: TaskVersion) -> tuple[str, ...]:
    return (
        version.name,
        str(version.version),
        "yes" if version.active else "no",
        _answer(version).removesuffix(" classes"),
        ", ".join(map(str, version.prompts)) or "-",
        f"{version.latency_ms:g} ms, {version.utility:g}",
        f"{100 * version.accuracy:.1f} %" if version.accuracy else "-",
        version.trunk[:TRUNK_SHOWN],
        version.created[:10],
    )


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    registry: RegistryFolder = DEFAULT_REGISTRY,
    database: Database = "",
) -> None:
    """Stop serving a task. Its versions stay: `activate` brings one back."""
    with one_line_errors():
        from fedstill.cloud_server.serving.tasks.registry import open_registry

        store = open_registry(registry, database)
        store.remove(name)
        store.close()
    console.print(f"{name} is not served any more", highlight=False)


@app.command()
def activate(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    version: Annotated[int, typer.Argument(help="Number of the version.", min=1)],
    registry: RegistryFolder = DEFAULT_REGISTRY,
    database: Database = "",
) -> None:
    """Serve this version of a task; running servers swap to it."""
    with one_line_errors():
        from fedstill.cloud_server.serving.tasks.registry import open_registry

        store = open_registry(registry, database)
        store.activate(name, version)
        store.close()
    console.print(f"{name} version {version} is served", highlight=False)


@app.command()
def profile(
    out: Annotated[Path | None, typer.Option(help="File for the profile, JSON.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="Time the schedules of this profile again; 1 if they differ by 25 %.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Images of a task that is not a known one; repeatable."),
    ] = None,
    registry: RegistryFolder = DEFAULT_REGISTRY,
    database: Database = "",
    weights: Weights = VIT_WEIGHTS,
    architecture: Architecture = None,
    schedules: Annotated[
        str | None,
        typer.Option(
            help="Token schedules, such as 0,-10,+4,g10-5,m22x4-20x8 (default: the thesis' and decreasing)."
        ),
    ] = None,
    val_images: Annotated[int, typer.Option(help="Images per task.", min=1)] = 200,
    batches: Annotated[
        str, typer.Option(help="Batch sizes to time; the last is the largest.")
    ] = "1,2,4,8,16,32",
    memory_mb: Annotated[
        int | None, typer.Option(help="Limit for the activations of a batch, MB.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="The same as at `tasks add`.")] = 0,
    backend: Backend = BackendChoice.AUTO,
) -> None:
    """Measure accuracy and time of every token schedule on this machine, for the planner."""
    with one_line_errors():
        from fedstill.cloud_server.serving.app.int8_ranges import ranges_file
        from fedstill.cloud_server.serving.app.profile_tasks import (
            ProfileOptions,
            compare_times,
            profile_tasks,
        )
        from fedstill.cloud_server.serving.engine.trunk import load_trunk
        from fedstill.cloud_server.serving.scheduling.profile import profile_to_plain, read_profile
        from fedstill.cloud_server.serving.tasks.registry import open_registry
        from fedstill.common.atomic_files import replace_text
        from fedstill.common.errors import ConfigError
        from fedstill.common.paths import data_path
        from fedstill.datasets.images.image_tasks import find_images

        if (out is None) == (check is None):
            raise ConfigError(
                "give --out FILE to measure a profile, or --check FILE to see whether one still holds"
            )
        kept = (read_profile(check), ranges_file(check)) if check is not None else None
        trunk = load_trunk(data_path(weights), architecture)
        store = open_registry(registry, database)
        tasks = store.load_active(trunk.fingerprint)
        store.close()
        if not tasks:
            raise ConfigError(
                f"{registry}: serves no task of these weights; add one with: fedstill tasks add NAME"
            )
        if kept is not None:
            _print_check(compare_times(trunk, tasks, *kept, batches), kept[0])
        places = dict(pair(text) for text in images or ())
        known = {
            name: find_images(name, places.get(name)).with_classes(task.class_names)
            for name, task in tasks.items()
        }
        limit = None if memory_mb is None else memory_mb * 2**20
        options = ProfileOptions(schedules, batches, val_images, seed, limit, backend.value)
        assert out is not None  # checked
        with console.status("measuring") as status:
            made, measured = profile_tasks(trunk, tasks, known, options, out, status.update)
        replace_text(out, json.dumps(profile_to_plain(made), indent=1))
    console.print(_measured_table(made, measured))
    console.print(f"profile: {out}", highlight=False, soft_wrap=True)


def _print_check(ratios: dict[str, float], profile: Profile) -> None:
    """The times of today over those of a profile; ends the command."""
    for name, ratio in ratios.items():
        console.print(f"{name:>12}  {ratio:5.2f} of the stored time", highlight=False)
    left_out = [one.name for one in profile.schedules if one.name not in ratios]
    for name in left_out:
        console.print(f"{name:>12}  does not run here", highlight=False)
    holds = not left_out and all(1 / HOLDS < ratio < HOLDS for ratio in ratios.values())
    console.print(
        "the profile holds" if holds else "the profile does not hold: measure again on an idle machine"
    )
    raise typer.Exit(0 if holds else 1)


def _measured_table(made: Profile, measured: Sequence[ScheduleProfile]) -> Table:
    kept = {schedule.name for schedule in made.schedules}
    grid = Table(box=SIMPLE_HEAD, title=made.source)
    for heading in ("schedule", "time of n", "largest error", *made.tasks, ""):
        grid.add_column(heading, justify="left" if heading in ("schedule", "") else "right")
    for one in measured:
        time = one.time
        grid.add_row(
            one.schedule.name,
            f"{1e3 * time.fixed_seconds:.1f} + {1e3 * time.per_query_seconds:.2f} n ms",
            f"{100 * time.worst_error:.0f} %",
            *(f"{100 * share:.1f} %" for share in one.accuracy),
            "" if one.schedule.name in kept else "dominated, left out",
        )
    return grid
