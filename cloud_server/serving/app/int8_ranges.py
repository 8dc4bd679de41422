"""The ranges of activations that schedules in int8 need: measured once on images of the tasks, and kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedstill.common.errors import DataError
from fedstill.datasets.images.image_tasks import ImageTask
from fedstill.models.vit.activation_ranges import measure_ranges, read_ranges, write_ranges
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.task_bank import TaskParameters

LOG = logging.getLogger(__name__)

IMAGES, LEAST, BATCH = 192, 32, 16
"""Of all tasks together, but at least so many of each; how many at once."""


def ranges_file(profile: Path) -> Path:
    """Beside the profile that was measured with it, whatever that is called: ``profile.json.ranges.safetensors``."""
    return profile.with_name(f"{profile.name}.ranges.safetensors")


def keep_ranges(
    file: Path,
    net: ElasticViT,
    parameters: Mapping[str, TaskParameters],
    tasks: Iterable[ImageTask],
    seed: int,
) -> None:
    """Measure on training images of the tasks; accuracy is measured on others.

    Args:
        net: with fp32 weights.
        tasks: with images, at least one, each of a task in ``parameters``.

    Raises:
        DataError: an image that cannot be read.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_ranges(file, measure_ranges(net, _batches(net, parameters, list(tasks), seed)), net)


def has_ranges(file: Path, net: ElasticViT) -> bool:
    """Whether it has those of this network; if it is damaged, a line says so."""
    if not file.exists():
        return False
    try:
        read_ranges(file, net)
    except DataError as error:
        LOG.warning("event=ranges_unreadable reason=%r", str(error))
        return False
    return True


def _batches(
    net: ElasticViT, parameters: Mapping[str, TaskParameters], tasks: list[ImageTask], seed: int
) -> Iterator[Tensor]:
    count = max(LEAST, IMAGES // len(tasks))
    for task in tasks:
        images: tuple[npt.NDArray[np.uint8], ...] = task.load("train", count, seed).images
        for start in range(0, len(images), BATCH):
            yield image_batch(images[start : start + BATCH], net.image_size, parameters[task.name].preprocess)
