"""The images that a load test sends, per task, with the names of their true classes.

They are the tasks' test images, on which nothing was trained or chosen, encoded once before the first query. Tests use
noise instead, for servers whose tasks have no images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedstill.datasets.images.image_tasks import ImageTask

DRAWN_SIDE = 32


@dataclass(frozen=True)
class TaskImages:
    """A task's images as PNG files, and the class name of each."""

    task: str
    pictures: tuple[bytes, ...]
    labels: tuple[str, ...]

    def place(self, draw: float) -> int:
        """The image for a random number in [0, 1)."""
        return int(draw * len(self.pictures))


def held_out_images(task: ImageTask, limit: int, seed: int = 0) -> TaskImages:
    """At most `limit` of a task's test images, as equally many of each class as there are.

    Raises DataError for images that cannot be read.
    """
    images = task.load("test", limit, seed)
    labels = tuple(task.class_names[label] for label in images.labels.tolist())
    return TaskImages(task.name, tuple(encoded(image) for image in images.images), labels)


def drawn_images(
    task: str, class_names: Sequence[str], count: int, generator: np.random.Generator
) -> TaskImages:
    """Noise with random classes: right answers are chance."""
    pixels = generator.integers(0, 256, (count, DRAWN_SIDE, DRAWN_SIDE, 3), dtype=np.uint8)
    labels = generator.integers(len(class_names), size=count)
    return TaskImages(
        task,
        tuple(encoded(image) for image in pixels),
        tuple(class_names[label] for label in labels.tolist()),
    )


def encoded(image: npt.NDArray[np.uint8]) -> bytes:
    """uint8 (height, width, 3) as PNG: lossless, so that the server gets the exact pixels."""
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
