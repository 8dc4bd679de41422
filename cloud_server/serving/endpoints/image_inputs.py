"""From a request's tensor to its images, each to be prepared by itself: files, pixels, or normalised values."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.endpoints.infer_parameters import refuse_shared_memory
from fedstill.cloud_server.serving.endpoints.refusals import bad
from fedstill.cloud_server.serving.engine.predictions import ImageError
from fedstill.cloud_server.serving.server import request_images
from fedstill.cloud_server.serving.server.request_images import ImageForm
from fedstill.cloud_server.serving.server.requests import Prepare
from fedstill.protos import open_inference_pb2 as pb

LARGEST_REQUEST_IMAGES = 64
LARGEST_SIDE = 4096
"""Pixels of a raw image."""
LENGTH = struct.Struct("<I")
MARGIN = 0.5
"""How far beyond the range of normalised pixels values may lie, in widths of that range: resizing overshoots."""


@dataclass(frozen=True)
class Images:
    """The images of a request, and what is odd about them."""

    prepared: tuple[Prepare, ...]
    warning: str = ""


@dataclass(frozen=True)
class _Sent:
    """A tensor as it came: raw is None if its values are typed contents."""

    tensor: pb.ModelInferRequest.InferInputTensor
    shape: tuple[int, ...]
    raw: bytes | None

    @property
    def name(self) -> str:
        return f"inputs[{self.tensor.name!r}]"


def read_images(request: pb.ModelInferRequest, form: ImageForm) -> Images:
    """The images of a request. Raises RequestError naming the field."""
    if len(request.inputs) != 1:
        raise bad("inputs", f"needs one of image, pixels and encoded, got {len(request.inputs)} inputs")
    tensor = request.inputs[0]
    refuse_shared_memory(tensor.parameters, f"inputs[{tensor.name[:40]!r}].")
    raw = request.raw_input_contents
    if raw and (len(raw) != 1 or tensor.HasField("contents")):
        raise bad("raw_input_contents", "needs one entry per input, or none beside contents")
    reader = READERS.get((tensor.name, tensor.datatype))
    if reader is None:
        known = ", ".join(f"{name} {datatype}" for name, datatype in READERS)
        raise bad("inputs", f"{tensor.name[:40]!r} {tensor.datatype[:16]!r} is not one of {known}")
    sent = _Sent(tensor, tuple(tensor.shape), raw[0] if raw else None)
    if not sent.shape or not 1 <= sent.shape[0] <= LARGEST_REQUEST_IMAGES:
        raise bad(f"{sent.name}.shape", f"needs 1 to {LARGEST_REQUEST_IMAGES} images")
    return reader(sent, form)


def _normalised(sent: _Sent, form: ImageForm) -> Images:
    if sent.shape[1:] != (3, form.size, form.size):
        wanted = f"[n, 3, {form.size}, {form.size}]"
        raise bad(f"{sent.name}.shape", f"needs {wanted} for FP32, got {_shown(sent.shape)}")
    values = _array(sent, sent.tensor.contents.fp32_contents, "<f4").astype(np.float32)
    warning = _unlikely(*_span(values, sent), form)
    return Images(tuple(request_images.normalised(image) for image in values), warning)


def _unlikely(least: float, most: float, form: ImageForm) -> str:
    """A warning for values that no pixel has after ``(pixel / 255 - mean) / std``."""
    channels = list(zip(form.preprocess.mean, form.preprocess.std, strict=True))
    darkest = min((0 - mean) / std for mean, std in channels)
    brightest = max((1 - mean) / std for mean, std in channels)
    margin = MARGIN * (brightest - darkest)
    if darkest - margin <= least and most <= brightest + margin:
        return ""
    return (
        f"inputs['image'] holds values from {least:g} to {most:g}; normalised pixels of this task lie from "
        f"{darkest:.3g} to {brightest:.3g}. Send 0 to 255 as the input 'pixels'"
    )


def _pixels(sent: _Sent, form: ImageForm) -> Images:
    shape = sent.shape
    first = len(shape) == 4 and shape[3] != 3 and shape[1] == 3
    sides = shape[2:] if first else shape[1:3]
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or not all(1 <= one <= LARGEST_SIDE for one in sides):
        raise bad(
            f"{sent.name}.shape",
            f"needs [n, height, width, 3] or [n, 3, height, width], sides up to {LARGEST_SIDE}, got {_shown(shape)}",
        )
    values, warning = _bytes_of_pixels(sent)
    rows = values.transpose(0, 2, 3, 1) if first else values
    return Images(tuple(request_images.pixels(np.ascontiguousarray(row), form) for row in rows), warning)


def _bytes_of_pixels(sent: _Sent) -> tuple[npt.NDArray[np.uint8], str]:
    if sent.tensor.datatype == "UINT8":
        if sent.raw is not None:
            return _array(sent, (), "u1"), ""
        wide = _array(sent, sent.tensor.contents.uint_contents, "u4")
        if wide.max() > 255:
            raise bad(f"{sent.name}.contents", "a pixel is above 255")
        return wide.astype(np.uint8), ""
    values = _array(sent, sent.tensor.contents.fp32_contents, "<f4")
    least, most = _span(values, sent)
    if least < 0 or most > 255:
        raise bad(sent.name, f"holds values from {least:g} to {most:g}, pixels lie from 0 to 255")
    dark = 0 < most <= 1
    warning = f"{sent.name} holds values up to {most:g}: pixels lie from 0 to 255, not to 1"
    return np.rint(values).astype(np.uint8), warning if dark else ""


def _encoded(sent: _Sent, form: ImageForm) -> Images:
    if len(sent.shape) != 1:
        raise bad(f"{sent.name}.shape", f"needs [n], got {_shown(sent.shape)}")
    files = (
        list(sent.tensor.contents.bytes_contents)
        if sent.raw is None
        else elements(sent.raw, LARGEST_REQUEST_IMAGES + 1)
    )
    if len(files) != sent.shape[0]:
        more = "at least " if len(files) > LARGEST_REQUEST_IMAGES else ""
        raise bad(sent.name, f"holds {more}{len(files)} elements, its shape says {sent.shape[0]}")
    images = []
    for place, content in enumerate(files):
        try:
            images.append(request_images.encoded(content, form))
        except ImageError as error:
            raise bad(sent.name, f"image {place}: {error}") from None
    pixels = sum(image.pixels for image in images)
    if pixels > request_images.MOST_PIXELS:
        raise bad(
            sent.name,
            f"{pixels} pixels in all, more than {request_images.MOST_PIXELS}: send smaller images, or fewer at a time",
        )
    return Images(tuple(images))


READERS: dict[tuple[str, str], Callable[[_Sent, ImageForm], Images]] = {
    ("image", "FP32"): _normalised,
    ("image", "UINT8"): _pixels,
    ("pixels", "UINT8"): _pixels,
    ("pixels", "FP32"): _pixels,
    ("encoded", "BYTES"): _encoded,
}
"""Of inputs by name and datatype."""


def _array(sent: _Sent, typed: Sequence[Any], dtype: str) -> npt.NDArray[Any]:
    kind, wanted = np.dtype(dtype), math.prod(sent.shape)
    got = len(typed) if sent.raw is None else len(sent.raw) / kind.itemsize
    if got != wanted:
        raise bad(sent.name, f"holds {got:g} values, its shape {_shown(sent.shape)} needs {wanted}")
    flat = np.array(typed, kind) if sent.raw is None else np.frombuffer(sent.raw, kind)
    return flat.reshape(sent.shape)


def _span(values: npt.NDArray[np.float32], sent: _Sent) -> tuple[float, float]:
    """The least and the largest value, both of which pass on NaN. Raises RequestError for NaN or infinity."""
    least, most = float(values.min()), float(values.max())
    if not (math.isfinite(least) and math.isfinite(most)):
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        raise bad(sent.name, f"image {int(finite.argmin())} holds NaN or infinity")
    return least, most


def elements(raw: bytes, most: int = sys.maxsize) -> list[bytes]:
    """The first ``most`` elements of BYTES, each preceded by its length. Raises RequestError."""
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) < most:
        start = at + LENGTH.size
        end = start + LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else start
        if end > len(raw):
            raise bad("raw_input_contents", "an element is longer than what is left of the contents")
        found.append(raw[start:end])
        at = end
    return found


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape[:6]))}{', ...' if len(shape) > 6 else ''}]"
