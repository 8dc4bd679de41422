"""From the images of a request to the engine's input, each by itself and only once it is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fedstill.cloud_server.serving.engine.predictions import ImageError
from fedstill.common.errors import DataError, first_line
from fedstill.datasets.decoding.image_files import read_image
from fedstill.models.vit.preprocess import image_tensor
from fedstill.models.vit.preprocess_settings import Preprocess

FORMATS = ("JPEG", "PNG")
LARGEST_PIXELS = 16 * 2**20
"""Of an encoded image: a small file may hold an absurdly large one."""
MOST_PIXELS = 4 * LARGEST_PIXELS
"""Of all encoded images of a request: others wait while they are decoded."""


@dataclass(frozen=True, slots=True)
class ImageForm:
    """What the engine wants of a task's images: their side in pixels, and how they are prepared."""

    size: int
    preprocess: Preprocess


def normalised(values: npt.NDArray[np.float32]) -> Callable[[], Tensor]:
    """(3, size, size), normalised by the client."""
    return lambda: torch.from_numpy(values)


def pixels(values: npt.NDArray[np.uint8], form: ImageForm) -> Callable[[], Tensor]:
    """(height, width, 3), RGB."""
    return lambda: image_tensor(values, form.size, form.preprocess)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """JPEG or PNG of so many pixels; calling it raises ImageError for anything else."""

    content: bytes
    form: ImageForm
    pixels: int

    def __call__(self) -> Tensor:
        return image_tensor(_decode(self.content), self.form.size, self.form.preprocess)


def encoded(content: bytes, form: ImageForm) -> EncodedImage:
    """Refuses at once anything that is not a JPEG or PNG, or too large; decoding comes later. Raises ImageError."""
    return EncodedImage(content, form, _count_pixels(content))


def _count_pixels(content: bytes) -> int:
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise ImageError("neither JPEG nor PNG") from None
    except Exception as error:  # damaged files make Pillow raise nearly everything
        raise ImageError(f"cannot be read ({first_line(error)})") from None
    if width * height > LARGEST_PIXELS:
        raise ImageError(f"{width} x {height} pixels are more than {LARGEST_PIXELS}")
    return width * height


def _decode(content: bytes) -> npt.NDArray[np.uint8]:
    try:
        return read_image(Path("encoded"), content)
    except DataError as error:
        raise ImageError(str(error)) from None
