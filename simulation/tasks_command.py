"""``fedstill tasks``: what the serving tier serves. Add a task from images, list, remove, go back, profile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fedstill.cloud_server.serving.registry import TaskRegistry
    from fedstill.datasets.image_tasks import ImageTask
    from fedstill.models.elastic_vit import ElasticViT
    from fedstill.models.schedules import TokenSchedule
    from fedstill.models.task_bank import TaskParameters

WEIGHTS = "weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.fp16.safetensors"

app = typer.Typer(help="Tasks of the serving tier: add, list, remove, profile.", no_args_is_help=True)
console = Console()

RegistryFolder = Annotated[Path, typer.Option("--registry", help="Folder of the task registry.")]
Weights = Annotated[str, typer.Option(help="timm ViT weights, safetensors; looked up like dataset paths.")]
Architecture = Annotated[
    str | None, typer.Option(help="timm model name (default: what the weights file's name begins with).")
]
DEFAULT_REGISTRY = Path("runs") / "tasks"


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="cifar10, tinyimagenet100, mnist, emotion_faces, or your own.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder or zip with train/CLASS/IMAGE and test/CLASS/IMAGE.")
    ] = None,
    registry: RegistryFolder = DEFAULT_REGISTRY,
    weights: Weights = WEIGHTS,
    architecture: Architecture = None,
    train_images: Annotated[int | None, typer.Option(help="Learn from at most so many.", min=2)] = None,
    val_images: Annotated[int | None, typer.Option(help="Choose by at most so many.", min=1)] = None,
    prompts: Annotated[
        str, typer.Option(help="Prompt numbers to train in turn, such as 2,4; empty for none.")
    ] = "",
    epochs: Annotated[int, typer.Option(help="Passes per prompt number.", min=1)] = 50,
    latency_ms: Annotated[float, typer.Option(help="Of queries that name none.", min=0)] = 600.0,
    utility: Annotated[float, typer.Option(help="Of queries that name none.", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of split, images and prompts.")] = 0,
) -> None:
    """Learn a task's head (and prompts) on the frozen trunk and register it as a new version."""
    from fedstill.simulation.cli import one_line_errors

    with one_line_errors():
        from fedstill.cloud_server.serving.learn_task import LearnSettings, learn_task
        from fedstill.cloud_server.serving.prompt_training import PromptSettings
        from fedstill.cloud_server.serving.registry import TaskRegistry
        from fedstill.cloud_server.serving.trunk import load_trunk
        from fedstill.simulation.config import data_path

        counts = whole_numbers("--prompts", prompts)
        trained = None
        if counts:
            with as_mistake("--prompts"):
                trained = PromptSettings(counts, epochs)
        task = find_images(name, images)
        trunk = load_trunk(data_path(weights), architecture)
        store = TaskRegistry(registry)
        with console.status(f"learning {name}") as status:
            learnt = learn_task(
                trunk.net, task, LearnSettings(train_images, val_images, trained, seed), status.update
            )
        version = store.register(
            name,
            learnt.parameters,
            trunk.fingerprint,
            latency_ms=latency_ms,
            utility=utility,
            accuracy=learnt.accuracy,
        )
        store.close()
    console.print(
        f"{name} version {version.version}: {len(version.class_names)} classes, "
        f"{100 * version.accuracy:.1f} % of the validation images right",
        highlight=False,
    )


@app.command(name="list")
def list_(
    registry: RegistryFolder = DEFAULT_REGISTRY,
    everything: Annotated[bool, typer.Option("--all", help="Also versions that are not served.")] = False,
) -> None:
    """Show the tasks that are served."""
    from fedstill.simulation.cli import one_line_errors

    with one_line_errors():
        store = open_registry(registry)
        versions = [version for version in store.versions() if version.active or everything]
        store.close()
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("task", "no.", "served", "classes", "prompts", "query", "accuracy", "added"):
        grid.add_column(heading, overflow="fold")
    for version in versions:
        grid.add_row(
            version.name,
            str(version.version),
            "yes" if version.active else "no",
            str(len(version.class_names)),
            ", ".join(map(str, version.prompts)) or "-",
            f"{version.latency_ms:g} ms, {version.utility:g}",
            f"{100 * version.accuracy:.1f} %",
            version.created[:10],
        )
    console.print(grid if versions else "no tasks; add one with: fedstill tasks add NAME")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Which task.")], registry: RegistryFolder = DEFAULT_REGISTRY
) -> None:
    """Stop serving a task. Its versions stay: `activate` brings one back."""
    from fedstill.simulation.cli import one_line_errors

    with one_line_errors():
        store = open_registry(registry)
        store.remove(name)
        store.close()
    console.print(f"{name} is not served any more", highlight=False)


@app.command()
def activate(
    name: Annotated[str, typer.Argument(help="Which task.")],
    version: Annotated[int, typer.Argument(help="Which of its versions.", min=1)],
    registry: RegistryFolder = DEFAULT_REGISTRY,
) -> None:
    """Serve this version of a task; running servers swap to it."""
    from fedstill.simulation.cli import one_line_errors

    with one_line_errors():
        store = open_registry(registry)
        store.activate(name, version)
        store.close()
    console.print(f"{name} version {version} is served", highlight=False)


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="Where the profile goes, JSON.")],
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Images of a task that is not a known one; repeatable."),
    ] = None,
    registry: RegistryFolder = DEFAULT_REGISTRY,
    weights: Weights = WEIGHTS,
    architecture: Architecture = None,
    schedules: Annotated[
        str | None,
        typer.Option(
            help="Token schedules, such as 0,-10,+4,m22x4-20x8 (default: the thesis' and decreasing)."
        ),
    ] = None,
    val_images: Annotated[int, typer.Option(help="Images per task.", min=1)] = 200,
    batches: Annotated[
        str, typer.Option(help="Batch sizes to time; the last is the largest.")
    ] = "1,2,4,8,16,32",
    memory_mb: Annotated[int | None, typer.Option(help="For the activations of a batch.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="As it was at `tasks add`.")] = 0,
) -> None:
    """Measure accuracy and time of every token schedule on this machine, for the planner."""
    from fedstill.simulation.cli import one_line_errors

    with one_line_errors():
        from fedstill.cloud_server.serving.engine import Engine, EngineSettings
        from fedstill.cloud_server.serving.profiler import profile_engine, profile_to_plain
        from fedstill.cloud_server.serving.trunk import load_trunk
        from fedstill.simulation.config import ConfigError, data_path
        from fedstill.simulation.files import write_text_atomically
        from fedstill.simulation.provenance import hardware

        trunk = load_trunk(data_path(weights), architecture)
        store = open_registry(registry)
        tasks = store.load_active(trunk.fingerprint)
        store.close()
        if not tasks:
            raise ConfigError(f"{registry}: serves no task; add one with: fedstill tasks add NAME")
        places = dict(pair(text) for text in images or ())
        known = {name: find_images(name, places.get(name)) for name in tasks}
        with as_mistake("--schedules or --batches"):
            settings = EngineSettings(
                chosen_schedules(schedules, trunk.net, tasks), whole_numbers("--batches", batches)
            )
        with console.status("measuring") as status:
            sets = {
                name: (loaded.images, loaded.labels)
                for name, loaded in ((n, task.load("val", val_images, seed)) for n, task in known.items())
            }
            engine = Engine(trunk.net, tasks, settings)
            engine.warm_up()
            with as_mistake("--schedules"):
                profiles = profile_engine(
                    engine,
                    sets,
                    memory_limit=None if memory_mb is None else memory_mb * 2**20,
                    progress=status.update,
                )
        source = f"{trunk.architecture}, {engine.variant}, {hardware()}, {val_images} images per task"
        plain = profile_to_plain(trunk.architecture, source, list(sets), profiles)
        write_text_atomically(out, json.dumps(plain, indent=1))
    kept = {entry["name"] for entry in plain["schedules"]}
    grid = Table(box=SIMPLE_HEAD, title=source)
    for heading in ("schedule", "time of n", "largest error", *sets, ""):
        grid.add_column(heading, justify="left" if heading in ("schedule", "") else "right")
    for measured in profiles:
        time = measured.time
        grid.add_row(
            measured.schedule.name,
            f"{1e3 * time.fixed_seconds:.1f} + {1e3 * time.per_query_seconds:.2f} n ms",
            f"{100 * time.worst_error:.0f} %",
            *(f"{100 * share:.1f} %" for share in measured.accuracy),
            "" if measured.schedule.name in kept else "dominated, left out",
        )
    console.print(grid)
    console.print(f"profile: {out}", highlight=False, soft_wrap=True)


def find_images(name: str, place: Path | None) -> ImageTask:
    """A task's images: where the user says, or in the data folder."""
    from fedstill.datasets.image_tasks import KNOWN_TASKS, open_image_task, open_known_task
    from fedstill.simulation.config import ConfigError, data_path

    if place is not None:
        return open_image_task(name, place)
    if name not in KNOWN_TASKS:
        known = ", ".join(KNOWN_TASKS)
        raise ConfigError(f"{name}: is not a known task ({known}); give --images with its folder or zip")
    return open_known_task(name, data_path(KNOWN_TASKS[name].path))


def chosen_schedules(
    text: str | None, net: ElasticViT, tasks: Mapping[str, TaskParameters]
) -> tuple[TokenSchedule, ...]:
    """The schedules of the option, or those of the default that all tasks have prompts for."""
    from fedstill.models.schedules import check_distinct, default_schedules, parse_schedule

    if text is None:
        everyones = set.intersection(*({0, *task.prompts} for task in tasks.values()))
        defaults = default_schedules(net.layers, net.patches)
        return tuple(schedule for schedule in defaults if schedule.prompts in everyones)
    named = (parse_schedule(part.strip(), net.layers) for part in text.split(","))
    return check_distinct(named, net.patches)


def open_registry(registry: Path) -> TaskRegistry:
    """An existing registry: reading must not make one."""
    from fedstill.cloud_server.serving.registry import TaskRegistry
    from fedstill.simulation.config import ConfigError

    if not registry.is_dir():
        raise ConfigError(f"{registry}: no task registry here; make one with: fedstill tasks add NAME")
    return TaskRegistry(registry)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """An option's numbers with commas between. Raises ConfigError naming the option."""
    from fedstill.simulation.config import ConfigError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{option} {text!r}: write whole numbers with commas, such as 2,4") from None


def pair(text: str) -> tuple[str, Path]:
    """Of --images. Raises ConfigError for another form than NAME=PATH."""
    from fedstill.simulation.config import ConfigError

    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"--images {text!r}: write NAME=PATH")
    return name, Path(path)


@contextmanager
def as_mistake(option: str) -> Iterator[None]:
    """A ValueError about what an option was given, as the user's mistake."""
    from fedstill.simulation.config import ConfigError

    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
