"""REST bodies and the protocol's messages, both ways: JSON, and Triton's tensors behind it as bytes.

An inference becomes the very message that gRPC would have brought, so checks and answers are the same.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from fedstill.cloud_server.serving.endpoints.image_inputs import LENGTH, elements
from fedstill.cloud_server.serving.endpoints.infer_parameters import OURS, value_of
from fedstill.cloud_server.serving.endpoints.refusals import bad
from fedstill.common.errors import first_line
from fedstill.protos import open_inference_pb2 as pb

BINARY_SIZE, BINARY, BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
KINDS: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
"""Datatypes of inputs whose values are numbers."""
MOST_NESTED = 2**20
"""Lists and objects in a body. They cost the whole server its time, since nothing else runs while JSON is parsed."""
MOST_READ = 16
"""Inputs, and outputs, that a request may list: it can only have one input, and two outputs."""


@dataclass(frozen=True)
class AskedForm:
    """Which outputs are wanted as bytes: of those that say so, and of the others."""

    outputs: Mapping[str, bool]
    others: bool

    def binary(self, name: str) -> bool:
        return self.outputs.get(name, self.others)


def read_json(content: bytes) -> dict[str, Any]:
    """A body that is a JSON object, or nothing. Raises RequestError."""
    if not content.strip():
        return {}
    if content.count(b"[") + content.count(b"{") > MOST_NESTED:
        raise bad("body", f"holds more than {MOST_NESTED} lists and objects: send tensors flat, or as bytes")
    try:
        found = json.loads(content)
        if b"\\ud" in content or b"\\uD" in content:  # perhaps half of a pair, which no message can hold
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise bad("body", f"not JSON ({first_line(error)})") from None
    return _object(found, "body")


def read_infer(
    model: str, version: str, content: bytes, header: int | None
) -> tuple[pb.ModelInferRequest, AskedForm]:
    """An inference request. Raises RequestError.

    header: bytes of JSON before the tensors; None if all is JSON, 0 if all is one image file.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    if header == 0:
        request.inputs.add(name="encoded", datatype="BYTES", shape=[1])
        request.raw_input_contents.append(LENGTH.pack(len(content)) + content)
        return request, AskedForm({}, False)
    end = len(content) if header is None else header
    if not 0 <= end <= len(content):
        raise bad("Inference-Header-Content-Length", "is not the length of the JSON part")
    plain = read_json(content[:end])
    try:
        form = _read_request(request, plain, content, end)
    except RecursionError:
        raise bad("body", "is nested too deeply") from None
    return request, form


def _read_request(
    request: pb.ModelInferRequest, plain: dict[str, Any], content: bytes, end: int
) -> AskedForm:
    """The JSON and the tensors behind it into the message."""
    request.id = _text(plain.get("id", ""), "id")
    parameters = _object(plain.get("parameters", {}), "parameters")
    _set_parameters(request.parameters, parameters, "")
    at = end
    inputs = _list(plain.get("inputs", []), "inputs")
    if len(inputs) > MOST_READ:
        raise bad("inputs", f"needs one of image, pixels and encoded, got {len(inputs)} inputs")
    for place, one in enumerate(inputs):
        at = _read_input(request, _object(one, f"inputs[{place}]"), content, at)
    if at != len(content):
        raise bad("body", f"{len(content) - at} bytes are left behind the tensors")
    wanted, outputs = _list(plain.get("outputs", []), "outputs"), {}
    if len(wanted) > MOST_READ:
        raise bad("outputs", f"there are fewer than {len(wanted)}")
    for place, one in enumerate(wanted):
        output = _object(one, f"outputs[{place}]")
        name = _text(output.get("name", ""), f"outputs[{place}].name")
        given = _object(output.get("parameters", {}), f"outputs[{place}].parameters")
        _set_parameters(request.outputs.add(name=name).parameters, given, f"outputs[{name!r}].")
        if BINARY in given:
            outputs[name] = given[BINARY] is True
    return AskedForm(outputs, parameters.get(BINARY_OUTPUT) is True)


def write_infer(answer: pb.ModelInferResponse, form: AskedForm) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part; None if all is JSON."""
    outputs, tensors = [], []
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        made: dict[str, Any] = {
            "name": output.name, "datatype": output.datatype, "shape": list(output.shape)
        }  # fmt: skip
        if form.binary(output.name):
            made["parameters"] = {BINARY_SIZE: len(raw)}
            tensors.append(raw)
        elif output.datatype == "BYTES":
            made["data"] = [text.decode() for text in elements(raw)]
        else:
            made["data"] = np.frombuffer(raw, KINDS[output.datatype]).tolist()
        outputs.append(made)
    plain = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
        "id": answer.id,
        "parameters": {name: value_of(answer.parameters, name) for name in sorted(answer.parameters)},
        "outputs": outputs,
    }
    head = json.dumps(plain).encode()
    return b"".join((head, *tensors)), len(head) if tensors else None


def read_load_parameters(plain: Mapping[str, Any], target: Any) -> None:
    """The parameters of a repository call into its message. Raises RequestError."""
    for name, value in _object(plain.get("parameters", {}), "parameters").items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, str):
            target[name].string_param = value
        else:
            raise bad(f"parameters[{name[:40]!r}]", "needs a string or a boolean")


def plain_message(message: Message) -> dict[str, Any]:
    """A message as JSON writes it: every field, numbers as numbers, values of an enumeration by name."""
    return {
        field.name: _plain_field(message, field)
        for field in message.DESCRIPTOR.fields
        if _shown(message, field)
    }


def _shown(message: Message, field: Any) -> bool:
    """A member of a choice is there or not; everything else is always there."""
    return field.containing_oneof is None or message.HasField(field.name)


def _plain_field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {
            key: _plain_value(field.message_type.fields_by_name["value"], value[key]) for key in sorted(value)
        }
    if isinstance(value, bool | int | float | str | bytes | Message):
        return _plain_value(field, value)
    return [_plain_value(field, one) for one in value]


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain_message(value)
    return field.enum_type.values_by_number[value].name if field.enum_type is not None else value


def _read_input(request: pb.ModelInferRequest, plain: dict[str, Any], content: bytes, at: int) -> int:
    """Add an input to the request; returns where the next tensor begins."""
    name = _text(plain.get("name", ""), "inputs.name")
    field = f"inputs[{name[:40]!r}]"
    datatype = _text(plain.get("datatype", ""), f"{field}.datatype")
    shape = _list(plain.get("shape", []), f"{field}.shape")
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**63 for one in shape):
        raise bad(f"{field}.shape", "needs whole numbers")
    parameters = _object(plain.get("parameters", {}), f"{field}.parameters")
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    _set_parameters(tensor.parameters, parameters, f"{field}.")
    if BINARY_SIZE in parameters:
        size = parameters[BINARY_SIZE]
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(content) - at:
            raise bad(
                f"{field}.parameters[{BINARY_SIZE!r}]", f"{len(content) - at} bytes are behind the JSON"
            )
        request.raw_input_contents.append(content[at : at + size])
        return at + size
    data = _list(plain.get("data", []), f"{field}.data")
    if datatype in KINDS:
        request.raw_input_contents.append(_numbers(data, KINDS[datatype], field).tobytes())
    elif datatype == "BYTES":
        files = [_image_file(one, f"{field}.data", place) for place, one in enumerate(_flat(data))]
        request.raw_input_contents.append(b"".join(LENGTH.pack(len(one)) + one for one in files))
    return at


def _numbers(data: list[Any], kind: np.dtype[Any], field: str) -> npt.NDArray[Any]:
    try:
        with np.errstate(over="ignore"):
            values = np.array(data, np.float64).reshape(-1)
            made = values.astype(kind)
    except (TypeError, ValueError, OverflowError):
        raise bad(f"{field}.data", "needs numbers, flat or nested evenly") from None
    if kind.kind == "u" and not (made == values).all():
        raise bad(f"{field}.data", "needs whole numbers from 0 to 255")
    return made


def _image_file(value: object, field: str, place: int) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "-", validate=True)
    except (binascii.Error, ValueError):
        raise bad(field, f"image {place}: in JSON an image file is text in base64") from None


def _flat(data: list[Any]) -> list[Any]:
    return [inner for one in data for inner in (_flat(one) if isinstance(one, list) else [one])]


def _set_parameters(target: Any, plain: Mapping[str, Any], owner: str) -> None:
    """JSON's values as the message's; of the user's own parameters, those that have no form are left out."""
    for name, value in plain.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            target[name].int64_param = value
        elif isinstance(value, int | float):
            target[name].double_param = _float(value)
        elif isinstance(value, str):
            target[name].string_param = value
        elif name in OURS:
            raise bad(f"{owner}parameters[{name!r}]", "needs a number or a string")


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad(field, "needs a JSON object")
    return value


def _list(value: object, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise bad(field, "needs a JSON array")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise bad(field, "needs a string")
    return value
