"""From ModelInfer to the dispatcher's request, and from its outcome to a response; checks name the field, no state."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import grpc
import numpy as np

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.engine.predictions import ImageError
from fedstill.cloud_server.serving.server import request_images
from fedstill.cloud_server.serving.server.request_images import ImageForm
from fedstill.cloud_server.serving.server.requests import Prepare, Response
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.protos import open_inference_pb2 as pb

MODEL = "elastic_vit"
VERSION = "1"
OUTPUTS = ("logits", "label")
PARAMETERS = ("task", "latency_ms", "utility")
STANDARD_PARAMETERS = frozenset(
    {"priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output", "headers"}
)
"""Parameters that clients of Triton or KServe may send; they have no effect here."""
LARGEST_REQUEST_IMAGES = 64
LARGEST_SIDE = 4096
"""Pixels of a raw image."""
LONGEST_LATENCY_MS = 3_600_000.0
LARGEST_UTILITY = 1e9
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class InferQuery:
    """A checked request. ``latency_ms`` and ``utility`` are None if the task's own are to be used."""

    task: str
    images: tuple[Prepare, ...]
    latency_ms: float | None
    utility: float | None
    outputs: tuple[str, ...]


def parse(request: pb.ModelInferRequest, size: int, preprocess_of: Callable[[str], Preprocess]) -> InferQuery:
    """Check a request. Raises RequestError naming the field.

    size: side of the engine's images. preprocess_of: called with a task's name, served or not.
    """
    check_model(request.model_name, request.model_version)
    for name in request.parameters:
        if name not in PARAMETERS and name not in STANDARD_PARAMETERS:
            close = get_close_matches(name, PARAMETERS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(PARAMETERS)}"
            raise bad(f"parameters[{name[:40]!r}]", f"unknown; {hint}")
    task = parameter(request.parameters, "task")
    if not isinstance(task, str) or not task:
        raise bad("parameters['task']", "needs a string, the task's name")
    outputs = tuple(output.name for output in request.outputs) or OUTPUTS
    for name in outputs:
        if name not in OUTPUTS:
            raise bad("outputs", f"{name[:40]!r} is not one of {', '.join(OUTPUTS)}")
    if len(set(outputs)) < len(outputs):
        raise bad("outputs", "an output is asked for twice")
    return InferQuery(
        task=task,
        images=_images(request, ImageForm(size, preprocess_of(task))),
        latency_ms=_number(request, "latency_ms", LONGEST_LATENCY_MS),
        utility=_number(request, "utility", LARGEST_UTILITY),
        outputs=outputs,
    )


def check_model(name: str, version: str) -> None:
    """Raises RequestError for a model or version that is not served."""
    if name != MODEL or version not in ("", VERSION):
        raise RequestError(
            grpc.StatusCode.NOT_FOUND, "model_name", f"the only model is {MODEL}, version {VERSION}"
        )


def checked_number(name: str, value: float, largest: float) -> float:
    """The value of a field that must lie between 0 and ``largest``. Raises RequestError."""
    if not (math.isfinite(value) and 0 <= value <= largest):
        raise bad(name, f"must lie between 0 and {largest:g}")
    return value


def response(request: pb.ModelInferRequest, query: InferQuery, served: Response) -> pb.ModelInferResponse:
    """Logits FP32 (n, classes) and labels BYTES (n), raw, and the schedule, times and batch size as parameters."""
    answer = pb.ModelInferResponse(model_name=MODEL, model_version=VERSION, id=request.id)
    logits = np.stack([one.logits for one in served.predictions]).astype("<f4")
    for name in query.outputs:
        if name == "logits":
            answer.outputs.add(name=name, datatype="FP32", shape=logits.shape)
            answer.raw_output_contents.append(logits.tobytes())
        else:
            labels = [one.label.encode() for one in served.predictions]
            answer.outputs.add(name=name, datatype="BYTES", shape=[len(labels)])
            answer.raw_output_contents.append(b"".join(LENGTH.pack(len(label)) + label for label in labels))
    answer.parameters["schedule"].string_param = ",".join(dict.fromkeys(served.schedules))
    answer.parameters["waiting_ms"].double_param = 1e3 * served.waiting_seconds
    answer.parameters["inference_ms"].double_param = 1e3 * served.inference_seconds
    answer.parameters["batch_size"].int64_param = served.batch_size
    answer.parameters["late"].bool_param = served.late
    return answer


def parameter(parameters: Mapping[str, pb.InferParameter], name: str) -> bool | int | str | float | None:
    """The value of a parameter; None if it is not given."""
    if name not in parameters:
        return None
    choice = parameters[name].WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameters[name], choice)


def _number(request: pb.ModelInferRequest, name: str, largest: float) -> float | None:
    field = f"parameters[{name!r}]"
    value = parameter(request.parameters, name)
    if value is None and name not in request.parameters:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(field, "needs a number")
    return checked_number(field, float(value), largest)


def _images(request: pb.ModelInferRequest, form: ImageForm) -> tuple[Prepare, ...]:
    if len(request.inputs) != 1:
        raise bad("inputs", f"needs one of image and encoded, got {len(request.inputs)} inputs")
    tensor = request.inputs[0]
    raw = request.raw_input_contents
    if raw and (len(raw) != 1 or tensor.HasField("contents")):
        raise bad("raw_input_contents", "needs one entry per input, or none beside contents")
    shape = tuple(tensor.shape)
    readers = {("image", "FP32"): _normalised, ("image", "UINT8"): _pixels, ("encoded", "BYTES"): _encoded}
    reader = readers.get((tensor.name, tensor.datatype))
    if reader is None:
        known = ", ".join(f"{name} {datatype}" for name, datatype in readers)
        raise bad("inputs", f"{tensor.name[:40]!r} {tensor.datatype[:16]!r} is not one of {known}")
    if not shape or not 1 <= shape[0] <= LARGEST_REQUEST_IMAGES:
        raise bad(f"inputs[{tensor.name!r}].shape", f"needs 1 to {LARGEST_REQUEST_IMAGES} images")
    return reader(tensor, shape, raw[0] if raw else None, form)


def _normalised(
    tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], raw: bytes | None, form: ImageForm
) -> tuple[Prepare, ...]:
    if shape[1:] != (3, form.size, form.size):
        raise bad(
            "inputs['image'].shape", f"needs [n, 3, {form.size}, {form.size}] for FP32, got {_shown(shape)}"
        )
    values = _array(raw, tensor.contents.fp32_contents, "<f4", shape).astype(np.float32)
    finite = np.isfinite(values.reshape(len(values), -1).sum(axis=1, dtype=np.float64))
    if not finite.all():
        raise bad("inputs['image']", f"image {int(finite.argmin())} holds NaN or infinity")
    return tuple(request_images.normalised(image) for image in values)


def _pixels(
    tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], raw: bytes | None, form: ImageForm
) -> tuple[Prepare, ...]:
    if len(shape) != 4 or shape[3] != 3 or not all(1 <= side <= LARGEST_SIDE for side in shape[1:3]):
        raise bad(
            "inputs['image'].shape",
            f"needs [n, height, width, 3] for UINT8, sides up to {LARGEST_SIDE}, got {_shown(shape)}",
        )
    if raw is None and any(value > 255 for value in tensor.contents.uint_contents):
        raise bad("inputs['image'].contents", "a pixel is above 255")
    values = _array(raw, tensor.contents.uint_contents, "u1", shape)
    return tuple(request_images.pixels(image, form) for image in values)


def _encoded(
    tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], raw: bytes | None, form: ImageForm
) -> tuple[Prepare, ...]:
    if len(shape) != 1:
        raise bad("inputs['encoded'].shape", f"needs [n], got {_shown(shape)}")
    files = list(tensor.contents.bytes_contents) if raw is None else _elements(raw)
    if len(files) != shape[0]:
        raise bad("inputs['encoded']", f"holds {len(files)} elements, its shape says {shape[0]}")
    images = []
    for place, content in enumerate(files):
        try:
            images.append(request_images.encoded(content, form))
        except ImageError as error:
            raise bad("inputs['encoded']", f"image {place}: {error}") from None
    pixels = sum(image.pixels for image in images)
    if pixels > request_images.MOST_PIXELS:
        raise bad(
            "inputs['encoded']",
            f"{pixels} pixels in all, more than {request_images.MOST_PIXELS}: send smaller images, or fewer at a time",
        )
    return tuple(images)


def _array(raw: bytes | None, values: Sequence[Any], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    kind, wanted = np.dtype(dtype), math.prod(shape)
    got = len(values) if raw is None else len(raw) / kind.itemsize
    if got != wanted:
        raise bad("inputs['image']", f"holds {got:g} values, its shape {_shown(shape)} needs {wanted}")
    flat = np.array(values, kind) if raw is None else np.frombuffer(raw, kind)
    return flat.reshape(shape)


def _elements(raw: bytes) -> list[bytes]:
    """Elements of BYTES: each preceded by its length."""
    found, at = [], 0
    while at < len(raw):
        start = at + LENGTH.size
        end = start + LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else start
        if end > len(raw):
            raise bad("raw_input_contents", "an element is longer than what is left of the contents")
        found.append(raw[start:end])
        at = end
    return found


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape[:6]))}{', ...' if len(shape) > 6 else ''}]"


def bad(field: str, text: str) -> RequestError:
    """INVALID_ARGUMENT that names the field."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, field, text)
