"""Pictures: from image files to plain arrays, with nothing but numpy and Pillow.

The frames of a clip and the requests to the serving tier both come through here, so that neither the serving tier
nor a device that starts its ClientApp loads the codecs of ``decode.py``. Which files are pictures says
``picture_formats.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin

from fedstill.common.errors import DataError
from fedstill.datasets.decoding.decoder_errors import check_exists, decoder_errors
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.files.faults import FORM, LARGE, PACKAGE, TINY
from fedstill.datasets.files.file_names import REPLACE
from fedstill.datasets.files.picture_formats import (
    FORMATS,
    HEAD_BYTES,
    MOVING_FORMATS,
    in_natural_order,
    is_heic,
)

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
"""Editors put more than Pillow's 1 MiB of text or colour profile into a picture; its limit for all of them stays."""

MOST_PIXELS = 120_000_000
"""Of all the frames taken from an image file: a photo of 108 megapixels takes just under 1 GB to decode."""
LARGE_BYTES = 2**26
"""A photo that stands for all frames of a clip is copied for each of them only if all take less than this."""

Frames = npt.NDArray[np.uint8]
Part = tuple[float, float]
WHOLE: Part = (0.0, 1.0)
"""Where a part of a sequence of pictures begins and ends, as shares of it."""

BAND = 2**22  # pixels that are converted at a time, so that a large photo is not in the memory several times

_TURNS: dict[int, tuple[int, int, bool]] = {
    2: (1, -1, False),
    3: (-1, -1, False),
    4: (-1, 1, False),
    5: (1, 1, True),
    6: (1, -1, True),
    7: (-1, -1, True),
    8: (-1, 1, True),
}
"""By EXIF's orientation: the steps through rows and columns of the upright picture, and whether the axes are swapped
after that, at which it has the order of the file."""


def read_images(path: Path, count: int, part: Part = WHOLE) -> Frames:
    """Read ``count`` frames from one image file, or from a folder of images in natural name order (2 before 10).

    Fewer images than ``count`` are repeated in order, more are picked by ``spread``. A folder's other files
    are not frames.

    Returns:
        uint8 RGB (count, height, width, 3).

    Raises:
        DataError: missing path, a folder without images, an unreadable image, images of different sizes.
    """
    check_exists(path, None)
    if not path.is_dir():
        return read_frames(path, count, part=part)
    names = in_natural_order(str(file) for file in path.iterdir())
    if not names:
        raise DataError(
            f"{path}: holds no image: put the frames there, as JPEG, PNG or any file that Pillow reads"
        )
    if len(names) == 1:
        return read_frames(Path(names[0]), count)
    return stack_frames(path, [read_image(Path(names[i])) for i in spread(count, len(names), part)])


def read_frames(path: Path, count: int, data: bytes | None = None, part: Part = WHOLE) -> Frames:
    """``count`` frames of one image file, uniformly spaced in time within ``part``; a still image is repeated.

    GIF, APNG, WebP, AVIF and FLI may move. The pages of a TIFF count as frames of equal length, if they have the size
    of the first one (a preview has not). Several pictures in a JPEG or HEIC are variants of the first.

    Returns:
        uint8 RGB (count, height, width, 3); of a large still image a read-only view.

    Raises:
        DataError: missing or unreadable.
    """
    with _opened(path, data) as image:
        numbers, lengths = _on_display(image)
        ends = np.cumsum(lengths) * 2 * count
        middles = ends[-1] * part[0] + (part[1] - part[0]) * ends[-1] / (2 * count) * (
            2 * np.arange(count) + 1
        )
        chosen = [numbers[i] for i in np.minimum(np.searchsorted(ends, middles, "right"), len(ends) - 1)]
        decoded: dict[int, Frames] = {}
        _check_size(image, len(set(chosen)))
        for number in sorted(set(chosen)):
            image.seek(number)
            decoded[number] = _to_rgb(image)
    if len(decoded) == 1 and count * decoded[chosen[0]].nbytes > LARGE_BYTES:
        frame = decoded[chosen[0]]
        return np.broadcast_to(frame, (count, *frame.shape))
    return stack_frames(path, [decoded[number] for number in chosen])


def read_image(path: Path, data: bytes | None = None) -> Frames:
    """Decode one image, upright, as uint8 RGB (height, width, 3).

    16 bits are rounded to 8, transparency lies on white. Raises DataError if the file is missing or unreadable.
    """
    with _opened(path, data) as image:
        return _to_rgb(image)


@contextmanager
def _opened(path: Path, data: bytes | None) -> Iterator[Image.Image]:
    """Pillow on ``path``; whatever its decoders raise becomes a DataError."""
    check_exists(path, data)
    with decoder_errors(path, "image"), _content(path, data) as file:
        try:
            with _open(file) as image:
                _check_size(image, 1)
                yield image
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(str(error)) from error


def _check_size(image: Image.Image, frames: int) -> None:
    if frames * image.width * image.height > MOST_PIXELS:
        many = f"{frames} frames of " if frames > 1 else ""
        raise _too_many_pixels(f"{many}{image.width} x {image.height}")


def _too_many_pixels(how_many: str) -> MediaError:
    return MediaError(f"has too many pixels ({how_many})", remedy="make it smaller", fault=LARGE)


def _content(path: Path, data: bytes | None) -> BinaryIO:
    return path.open("rb") if data is None else BytesIO(data)


def _open(file: BinaryIO) -> Image.Image:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not is_heic(head):
        return Image.open(file, formats=FORMATS)
    try:
        from pillow_heif import open_heif
    except ImportError as error:
        raise MediaError(
            "is a HEIC picture",
            remedy="install fedstill[heic] (the package pillow-heif), or export it as JPEG",
            fault=PACKAGE,
        ) from error
    picture: Image.Image = open_heif(file).to_pillow()
    return picture


def _on_display(image: Image.Image) -> tuple[list[int], list[float]]:
    """The numbers of the frames to show, and for how long each is shown, in any unit."""
    first = int(getattr(image, "default_image", False))  # of an APNG: for viewers that cannot move it
    last = getattr(image, "n_frames", 1) if image.format in MOVING_FORMATS else 1
    if last - first < 2:
        return [last - 1], [1.0]
    numbers: list[int] = []
    lengths: list[float] = []
    image.seek(first)
    size = image.size
    for number in range(first, last):
        image.seek(number)
        if image.format in ("WEBP", "AVIF"):
            image.load()  # only then are their times known
        if image.size != size:  # a TIFF's preview
            continue
        length = float(image.info.get("duration", 0))
        numbers.append(number)
        lengths.append(100.0 if image.format == "GIF" and length < 20 else length)  # as all players do
    return numbers, lengths if sum(lengths) > 0 else [1.0] * len(numbers)


def _to_rgb(image: Image.Image) -> Frames:
    """uint8 RGB (height, width, 3) of the frame that is chosen, upright."""
    _check_filled(image)
    image.load()
    rows, columns, sideways = _TURNS.get(_orientation(image), (1, 1, False))
    height, width = (image.width, image.height) if sideways else (image.height, image.width)
    upright = np.empty((height, width, 3), np.uint8)
    as_stored = upright[::rows, ::columns]
    if sideways:
        as_stored = as_stored.swapaxes(0, 1)
    step = max(1, BAND // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        band = image if bottom - top == image.height else image.crop((0, top, image.width, bottom))
        as_stored[top:bottom] = np.asarray(_band_to_rgb(band))
    return upright


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_eight_bits(np.asarray(image)))
    elif image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_filled(image: Image.Image) -> None:
    """Pillow leaves the rows black that no strip of a TIFF is for."""
    tiles: Sequence[Any] = getattr(image, "tile", ()) if image.format == "TIFF" else ()
    if tiles:
        width, filled = (max(tile.extents[side] for tile in tiles) for side in (2, 3))
        rows = (
            image.width * image.height // max(width, 1)
        )  # as stored: Pillow tells the size of the turned picture
        if filled < rows:
            raise MediaError(f"is damaged: it holds {filled} of {rows} rows")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels, and viewers ignore it too
        return 1


def _to_eight_bits(values: npt.NDArray[Any]) -> Frames:
    """Grey values of more than 8 bits: whole numbers up to 65535, or fractions from 0 to 1."""
    low, high = values.min(), values.max()
    most = 65535 if np.issubdtype(values.dtype, np.integer) else 1
    if not 0 <= low <= high <= most:
        raise MediaError(f"has values from {low:g} to {high:g}", remedy=f"scale them to 0 to {most}")
    return np.rint(values.astype(np.float64) * (255 / most)).astype(np.uint8)


def stack_frames(path: Path, frames: Sequence[Frames]) -> Frames:
    """(height, width, 3) each -> (count, height, width, 3). Raises DataError where their sizes differ."""
    if len({frame.shape for frame in frames}) > 1:
        raise DataError(f"{path}: its images differ in size: bring the frames of a clip to one size", FORM)
    return np.stack(frames)


def require_visible(path: Path, frames: Frames) -> Frames:
    """The (count, height, width, 3) frames of ``path``. Raises DataError if they are a pixel wide or high."""
    height, width = frames.shape[1:3]
    if min(height, width) < 2:
        raise DataError(f"{path}: is {width} x {height} pixels, which shows nothing: {REPLACE}", TINY)
    return frames


def spread(count: int, available: int, part: Part = WHOLE) -> list[int]:
    """The middle of each of ``count`` equal parts: 2 of 10 are 2 and 7; 4 of 2 repeat in order, 0 0 1 1.

    Of a ``part`` of the sequence, likewise: 2 of the second half of 10 are 6 and 8.

    Source: the test rule of MMPareto (arXiv 2405.17730), ``code/dataset/av_dataset.py``.
    """
    if part == WHOLE:
        return [(2 * one + 1) * available // (2 * count) for one in range(count)]
    begin, end = part
    shares = (begin + (end - begin) * (2 * one + 1) / (2 * count) for one in range(count))
    return [min(int(share * available), available - 1) for share in shares]


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
