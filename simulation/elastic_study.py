"""What token schedules and prompts do to accuracy and speed on real weights and tasks (thesis Tables 3.1, 3.2).

Heads are linear probes on the frozen trunk's plain features, as the serving tier learns them. Every schedule sees
the same test images, so differences are paired; the images are kept as digits of right (1) and wrong (0) answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from fedstill.cloud_server.serving.engine import Engine, EngineSettings
from fedstill.cloud_server.serving.learn_task import LearnSettings, learn_task
from fedstill.cloud_server.serving.profiler import AffineTime, measure_right, measure_times
from fedstill.cloud_server.serving.prompt_training import PromptSettings, train_prompts
from fedstill.cloud_server.serving.trunk import Trunk
from fedstill.datasets.image_tasks import ImageTask
from fedstill.models.elastic_vit import ElasticViT
from fedstill.models.schedules import (
    TokenSchedule,
    constant_schedule,
    decreasing_schedule,
    effective_merges,
    forward_macs,
    layer_wise_schedule,
    token_counts,
)
from fedstill.models.task_bank import TaskParameters
from fedstill.protos.plain import from_plain, to_plain
from fedstill.simulation.files import write_text_atomically
from fedstill.simulation.provenance import git_revision, hardware
from fedstill.simulation.results import ResultsError

STUDY_FILE = "elastic_vit.json"
FORMAT = 1
PROMPTS = 4
"""Table 3.1's number of prompts; the iterative scheme trains half of them first."""

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StudySettings:
    """How much is measured: images per task, and how prompts are trained (no epochs: not at all).

    Attributes:
        prompt_images: training images of the prompts.
        prompt_epochs: of each of the two iterative stages; from scratch trains twice as long, so that both see the
            same images.
        rounds, timed_batches: timings per schedule and batch size.
    """

    train_images: int = 800
    val_images: int = 200
    test_images: int = 300
    prompt_images: int = 256
    prompt_epochs: int = 0
    prompt_learning_rate: float = 0.002
    rounds: int = 5
    timed_batches: tuple[int, ...] = (1, 8, 16)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """One schedule: what it does to the tokens of an image, what that costs, and its time on this machine."""

    label: str
    name: str
    merged: int
    tokens_left: int
    ideal_speed_up: float
    fixed_seconds: float
    per_query_seconds: float

    @property
    def images_per_second(self) -> float:
        """In batches of 8."""
        return 8 / (self.fixed_seconds + 8 * self.per_query_seconds)


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task: right answers on its test images as digits, by schedule label and by prompt scheme."""

    task: str
    classes: int
    validation_accuracy: float
    right: dict[str, str]
    prompted: dict[str, str]


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that was measured, and where."""

    architecture: str
    variant: str
    settings: StudySettings
    schedules: tuple[ScheduleRow, ...]
    tasks: tuple[TaskRow, ...]
    date: str
    hardware: str
    threads: int
    versions: dict[str, str]
    git: str


def study_schedules(layers: int) -> dict[str, TokenSchedule]:
    """By label: the thesis' constant ones, its layer-wise schemes, and decreasing ones at about equal tokens."""
    constant = {str(delta): constant_schedule(delta, layers) for delta in (0, -5, -10, -14, -15, -20)}
    schemes = {f"scheme {scheme}": layer_wise_schedule(scheme, layers=layers) for scheme in (2, 3, 4)}
    decreasing = {f"decreasing {mean}": decreasing_schedule(mean, layers) for mean in (10, 15)}
    return {**constant, **schemes, **decreasing}


def run_study(
    trunk: Trunk, tasks: Sequence[ImageTask], settings: StudySettings, out: Path, told: Told
) -> Study:
    """Learn heads, measure every schedule on every task, and write OUT/elastic_vit.json.

    told: called with a line for a person. Raises DataError for images that cannot be used.
    """
    schedules = study_schedules(trunk.net.layers)
    learn = LearnSettings(settings.train_images, settings.val_images, seed=settings.seed)
    learnt = {task.name: learn_task(trunk.net, task, learn, told) for task in tasks}
    engine = Engine(
        trunk.net,
        {name: one.parameters for name, one in learnt.items()},
        EngineSettings(tuple(schedules.values()), settings.timed_batches),
    )
    told("timing schedules")
    engine.warm_up()
    times = measure_times(engine, tuple(schedules.values()), settings.rounds)
    rows = []
    for task in tasks:
        test = task.load("test", settings.test_images, settings.seed)
        right = {}
        for label, schedule in schedules.items():
            told(f"{task.name}: {label}")
            answers = measure_right(engine, schedule, task.name, test.images, test.labels)
            right[label] = _digits(answers)
        prompted = {}
        if settings.prompt_epochs:
            prompted = _prompted(trunk.net, learnt[task.name].parameters, task, settings, told)
        rows.append(TaskRow(task.name, len(task.class_names), learnt[task.name].accuracy, right, prompted))
    study = Study(
        architecture=trunk.architecture,
        variant=engine.variant,
        settings=settings,
        schedules=tuple(
            _schedule_row(engine.net, label, schedule, times[schedule])
            for label, schedule in schedules.items()
        ),
        tasks=tuple(rows),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
        threads=torch.get_num_threads(),
        versions={name: version(name) for name in ("torch", "timm", "numpy")},
        git=git_revision(),
    )
    write_text_atomically(out / STUDY_FILE, json.dumps({"format": FORMAT, **to_plain(study)}, indent=1))
    return study


def read_study(folder: Path) -> Study:
    """What ``run_study`` wrote. Raises ResultsError, one line, where there is none."""
    path = folder / STUDY_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; make one with: fedstill elastic --out {folder}") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: is not readable ({error})") from error
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise ResultsError(f"{path}: is of another format: measure again with: fedstill elastic")
    try:
        return from_plain(Study, plain)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from error


def _prompted(
    net: ElasticViT, parameters: TaskParameters, task: ImageTask, settings: StudySettings, told: Told
) -> dict[str, str]:
    """Table 3.1: as many prompts from scratch and grown from half of them, on the same images, equally long."""
    train = task.load("train", settings.prompt_images, settings.seed)
    test = task.load("test", settings.test_images, settings.seed)
    head = (parameters.head_weight, parameters.head_bias)
    schedule = constant_schedule(PROMPTS, net.layers)
    plans = {
        "scratch": PromptSettings(
            (PROMPTS,), 2 * settings.prompt_epochs, learning_rate=settings.prompt_learning_rate
        ),
        "iterative": PromptSettings(
            (PROMPTS // 2, PROMPTS), settings.prompt_epochs, learning_rate=settings.prompt_learning_rate
        ),
    }
    found = {}
    for name, plan in plans.items():

        def tell(count: int, loss: float, name: str = name) -> None:
            told(f"{task.name}: {name}, {count} prompts, loss {loss:.4f}")

        sets = train_prompts(
            net,
            head,
            train.images,
            train.labels,
            plan,
            torch.Generator().manual_seed(settings.seed),
            tell,
        )
        with_prompts = TaskParameters(parameters.class_names, *head, {PROMPTS: sets[PROMPTS]})
        engine = Engine(net, {task.name: with_prompts}, EngineSettings((schedule,), settings.timed_batches))
        found[name] = _digits(measure_right(engine, schedule, task.name, test.images, test.labels))
    return found


def _schedule_row(net: ElasticViT, label: str, schedule: TokenSchedule, time: AffineTime) -> ScheduleRow:
    plain, this = (
        forward_macs(one, net.patches, net.width, net.hidden)
        for one in (constant_schedule(0, net.layers), schedule)
    )
    return ScheduleRow(
        label,
        schedule.name,
        sum(effective_merges(schedule, net.patches)),
        token_counts(schedule, net.patches, net.protected)[-1],
        plain / this,
        time.fixed_seconds,
        time.per_query_seconds,
    )


def _digits(right: np.ndarray) -> str:
    return "".join("1" if answer else "0" for answer in right)
