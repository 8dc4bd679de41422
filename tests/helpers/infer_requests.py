"""Inference requests of the Open Inference Protocol, right ones, and what an answer holds."""

from __future__ import annotations

import numpy as np

from fedstill.protos import open_inference_pb2 as pb
from helpers.serving import SIZE


def normalised(count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def parameter(value: object) -> pb.InferParameter:
    kinds = {str: "string_param", bool: "bool_param", int: "int64_param", float: "double_param"}
    return pb.InferParameter(**{kinds[type(value)]: value})


def request(
    values: np.ndarray | list[bytes],
    name: str = "",
    datatype: str = "",
    model: str = "elastic_vit",
    version: str = "",
    **parameters: object,
) -> pb.ModelInferRequest:
    """A right request, raw contents; a list is of encoded images. The task is a parameter unless a model is named."""
    encoded = isinstance(values, list)
    shape = [len(values)] if encoded else values.shape
    kind = "BYTES" if encoded else {"f": "FP32", "u": "UINT8"}[values.dtype.kind]
    raw = b"".join(len(one).to_bytes(4, "little") + one for one in values) if encoded else values.tobytes()
    asked = pb.ModelInferRequest(model_name=model, model_version=version, id="7", raw_input_contents=[raw])
    asked.inputs.add(name=name or ("encoded" if encoded else "image"), datatype=datatype or kind, shape=shape)
    task = "cats" if model == "elastic_vit" else None
    for key, value in {"task": task, "latency_ms": 20_000, **parameters}.items():
        if value is not None:
            asked.parameters[key].CopyFrom(parameter(value))
    return asked


def logits(answer: pb.ModelInferResponse) -> np.ndarray:
    place = [output.name for output in answer.outputs].index("logits")
    return np.frombuffer(answer.raw_output_contents[place], "<f4").reshape(answer.outputs[place].shape)


def texts(answer: pb.ModelInferResponse, name: str) -> list[str]:
    """The elements of an output of BYTES."""
    place = [output.name for output in answer.outputs].index(name)
    raw, found, at = answer.raw_output_contents[place], [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        found.append(raw[at + 4 : end].decode())
        at = end
    return found
