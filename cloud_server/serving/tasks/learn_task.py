"""From a folder of labelled images to a task that the serving tier can register (thesis ``Register_Task``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedstill.cloud_server.serving.tasks.prompt_training import (
    PromptSettings,
    extract_features,
    fit_head,
    train_prompts,
)
from fedstill.datasets.images.image_tasks import ImageTask
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.task_bank import TaskParameters


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """How much of a task's data is used for training.

    Attributes:
        train_images, val_images: at most so many; None for all.
        prompts: how prompts are trained; None for a head alone.
        seed: of the validation split, of the images taken, and of prompts.
    """

    train_images: int | None = None
    val_images: int | None = None
    prompts: PromptSettings | None = None
    seed: int = 0


@dataclass(frozen=True)
class LearntTask:
    """The trained head and prompts, and their accuracy on the validation images at the plain schedule."""

    parameters: TaskParameters
    accuracy: float


def learn_task(
    net: ElasticViT,
    task: ImageTask,
    settings: LearnSettings,
    progress: Callable[[str], None] | None = None,
    count: Callable[[int, int], None] | None = None,
) -> LearntTask:
    """Train a head, and prompts if requested, on the frozen trunk ``net``.

    Args:
        net: the trunk.
        task: its images.
        settings: how much of them is used.
        progress: called with a line for a person, which has the numbers unless ``count`` gets them.
        count: called with (images done, images in all), then with (epochs of prompts done, epochs in all).

    Raises:
        DataError: images that cannot be used.
    """
    train = task.load("train", settings.train_images, settings.seed)
    val = task.load("val", settings.val_images, settings.seed)
    everything, features = len(train.images) + len(val.images), []
    for kind, images, before in (("training", train, 0), ("validation", val, len(train.images))):

        def on_progress(done: int, total: int, kind: str = kind, before: int = before) -> None:
            if progress is not None:
                counted = "" if count is not None else f", {done} / {total}"
                progress(f"{task.name}: features of the {kind} images{counted}")
            if count is not None:
                count(before + done, everything)

        features.append(extract_features(net, images.images, progress=on_progress))
    weight, bias, accuracy = fit_head(
        (features[0], train.labels), (features[1], val.labels), len(task.class_names)
    )
    prompts = {}
    if settings.prompts is not None:
        epochs, finished = settings.prompts.epochs * len(settings.prompts.counts), 0

        def on_epoch(number: int, loss: float) -> None:
            nonlocal finished
            finished += 1
            if progress is not None:
                progress(f"{task.name}: {number} prompts, loss {loss:.4f}")
            if count is not None:
                count(finished, epochs)

        prompts = train_prompts(
            net,
            (weight, bias),
            train.images,
            train.labels,
            settings.prompts,
            torch.Generator().manual_seed(settings.seed),
            on_epoch,
        )
    parameters = TaskParameters(task.class_names, weight, bias, prompts, net.preprocess)
    return LearntTask(parameters, accuracy)
