"""The effect of token schedules and prompts on accuracy and speed, on real weights and tasks (thesis Tables 3.1, 3.2).

Heads are linear probes on the frozen trunk's plain features, as in the serving tier. Every schedule sees
the same test images, so differences are paired; the images are kept as digits of right (1) and wrong (0) answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.profiler import AffineTime, measure_right, measure_times
from fedstill.cloud_server.serving.engine.trunk import Trunk
from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings, learn_task
from fedstill.cloud_server.serving.tasks.prompt_training import PromptSettings, train_prompts
from fedstill.common.provenance import git_revision, hardware
from fedstill.datasets.images.image_tasks import ImageTask
from fedstill.evaluation.elastic.results import (
    PROMPTS,
    ScheduleRow,
    Study,
    StudySettings,
    TaskRow,
    write_study,
)
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import (
    TokenSchedule,
    constant_schedule,
    decreasing_schedule,
    effective_merges,
    forward_macs,
    layer_wise_schedule,
    token_counts,
)
from fedstill.models.vit.task_bank import TaskParameters

Told = Callable[[str], None]


def study_schedules(layers: int) -> dict[str, TokenSchedule]:
    """By label: the thesis' constant ones, its layer-wise schemes, and decreasing ones at about equal tokens."""
    constant = {str(delta): constant_schedule(delta, layers) for delta in (0, -5, -10, -14, -15, -20)}
    schemes = {f"scheme {scheme}": layer_wise_schedule(scheme, layers=layers) for scheme in (2, 3, 4)}
    decreasing = {f"decreasing {mean}": decreasing_schedule(mean, layers) for mean in (10, 15)}
    return {**constant, **schemes, **decreasing}


def run_study(
    trunk: Trunk, tasks: Sequence[ImageTask], settings: StudySettings, out: Path, on_progress: Told
) -> Study:
    """Learn heads, measure every schedule on every task, and write OUT/elastic_vit.json.

    on_progress: called with a line for a person. Raises DataError for images that cannot be used.
    """
    schedules = study_schedules(trunk.net.layers)
    learn = LearnSettings(settings.train_images, settings.val_images, seed=settings.seed)
    learnt = {task.name: learn_task(trunk.net, task, learn, on_progress) for task in tasks}
    engine = Engine(
        trunk.net,
        {name: one.parameters for name, one in learnt.items()},
        EngineSettings(tuple(schedules.values()), settings.timed_batches),
    )
    on_progress("timing schedules")
    engine.warm_up()
    times = measure_times(engine, tuple(schedules.values()), settings.rounds)
    rows = []
    for task in tasks:
        test = task.load("test", settings.test_images, settings.seed)
        right = {}
        for label, schedule in schedules.items():
            on_progress(f"{task.name}: {label}")
            answers = measure_right(engine, schedule, task.name, test.images, test.labels)
            right[label] = _digits(answers)
        prompted = {}
        if settings.prompt_epochs:
            prompted = _prompted(trunk.net, learnt[task.name].parameters, task, settings, on_progress)
        rows.append(TaskRow(task.name, len(task.class_names), learnt[task.name].accuracy, right, prompted))
    study = Study(
        architecture=trunk.architecture,
        preprocess=trunk.net.preprocess,
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
    write_study(out, study)
    return study


def _prompted(
    net: ElasticViT, parameters: TaskParameters, task: ImageTask, settings: StudySettings, on_progress: Told
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
            on_progress(f"{task.name}: {name}, {count} prompts, loss {loss:.4f}")

        sets = train_prompts(
            net,
            head,
            train.images,
            train.labels,
            plan,
            torch.Generator().manual_seed(settings.seed),
            tell,
        )
        with_prompts = replace(parameters, prompts={PROMPTS: sets[PROMPTS]})
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
