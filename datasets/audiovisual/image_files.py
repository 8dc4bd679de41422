"""Pictures: from image files to plain arrays, with nothing but numpy and Pillow.

The frames of a clip and the requests to the serving tier both come through here, so that neither the serving tier
nor a device that starts its ClientApp loads the codecs of ``decode.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fedstill.datasets.audiovisual.clip import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
REPLACE = "download or export it again"

Frames = npt.NDArray[np.uint8]


def read_images(path: Path, count: int) -> Frames:
    """Read ``count`` frames from one image, or from a folder of images in natural name order (2 before 10).

    Fewer images than ``count`` are repeated in order, more are picked by ``spread``. A folder's other files
    are not frames.

    Returns:
        uint8 RGB (count, height, width, 3).

    Raises:
        DataError: missing path, a folder without images, an unreadable image, images of different sizes.
    """
    check_exists(path, None)
    names = in_natural_order(str(file) for file in path.iterdir()) if path.is_dir() else [str(path)]
    if not names:
        raise DataError(f"{path}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): put the frames there")
    return stack_frames(path, [read_image(Path(names[i])) for i in spread(count, len(names))])


def read_image(path: Path, data: bytes | None = None) -> Frames:
    """Decode one image, upright, as uint8 RGB (height, width, 3). Raises DataError if that fails."""
    check_exists(path, data)
    try:
        with Image.open(path if data is None else BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{path}: has more than 8 bits per channel: convert it to 8-bit first")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot decode this image ({first_line(error)}): {REPLACE}") from error


def stack_frames(path: Path, frames: Sequence[Frames]) -> Frames:
    """(height, width, 3) each -> (count, height, width, 3). Raises DataError where their sizes differ."""
    if len({frame.shape for frame in frames}) > 1:
        raise DataError(f"{path}: its images differ in size: bring the frames of a clip to one size")
    return np.stack(frames)


def spread(count: int, available: int) -> list[int]:
    """The middle of each of ``count`` equal parts: 2 of 10 are 2 and 7; 4 of 2 repeat in order, 0 0 1 1.

    Source: the test rule of MMPareto (arXiv 2405.17730), ``code/dataset/av_dataset.py``.
    """
    return [(2 * part + 1) * available // (2 * count) for part in range(count)]


def in_natural_order(names: Iterable[str]) -> list[str]:
    """The names of images among ``names``, numbers compared as numbers: frame_2.jpg before frame_10.jpg."""
    images = (name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
    return sorted(images, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(20), name))


def resize_frames(frames: Frames, size: int) -> Frames:
    """uint8 (count, height, width, 3) -> uint8 (count, size, size, 3), antialiased.

    The picture is stretched to the square, as all published CREMA-D and AVE pipelines do.
    """
    if frames.shape[1:3] == (size, size):
        return frames
    resized = (
        Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR)  # Pillow widens the filter
        for frame in frames
    )
    return np.stack([np.asarray(image) for image in resized])


def check_exists(path: Path, data: bytes | None) -> None:
    """Raises DataError if there is neither a file nor its bytes."""
    if data is None and not path.exists():
        raise DataError(f"{path}: no such file: check the path, or {REPLACE}")


def first_line(error: Exception) -> str:
    """The first line of an error of a codec, without the file name, which our message has already."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
