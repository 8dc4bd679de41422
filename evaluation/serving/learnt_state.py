"""A state folder with real tasks for ``fedstill serve``, trained once and then kept, for benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings, learn_task
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.datasets.images.image_tasks import ImageTask
from fedstill.evaluation.serving.virtual import Progress


def learn_missing(
    state: Path,
    tasks: Sequence[ImageTask],
    weights: Path,
    settings: LearnSettings,
    progress: Progress = lambda _: None,
) -> None:
    """Register a head (linear probe) for each of the tasks that the folder does not serve yet with these weights.

    Raises DataError for weights or images that cannot be used.
    """
    trunk = load_trunk(weights)
    registry = TaskRegistry(state)
    known = registry.load_active(trunk.fingerprint)
    for task in tasks:
        if task.name not in known:
            learnt = learn_task(trunk.net, task, settings, progress)
            registry.register(task.name, learnt.parameters, trunk.fingerprint, accuracy=learnt.accuracy)
    registry.close()
