"""From the dispatcher's outcome to ModelInfer's response: tensors, classes as text, and how the query was answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np

from fedstill.cloud_server.serving.endpoints.image_inputs import LENGTH
from fedstill.cloud_server.serving.endpoints.infer_request import InferQuery
from fedstill.cloud_server.serving.endpoints.model_names import MODEL, VERSION
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.server.requests import Response
from fedstill.protos import open_inference_pb2 as pb

TEXTS: Mapping[str, Callable[[Prediction], str]] = {
    "label": lambda prediction: prediction.label,
    "labels": lambda prediction: json.dumps(prediction.labels, ensure_ascii=False),
}
"""Outputs that are texts: a class, and a list in JSON, because a name may hold any sign."""


def make_response(
    request: pb.ModelInferRequest, query: InferQuery, served: Response
) -> pb.ModelInferResponse:
    """The tensors that are asked for, raw; schedule, times, batch size and warnings as parameters.

    Logits and probabilities are FP32 (n, classes), embeddings FP32 (n, width), texts BYTES (n).
    """
    newest = max(served.versions)
    old = query.task.name != request.model_name and request.model_name == MODEL
    answer = pb.ModelInferResponse(
        model_name=request.model_name, model_version=VERSION if old else str(newest), id=request.id
    )
    for output in query.outputs:
        if output.classes:
            texts = [_best(one, output.classes) for one in served.predictions]
            _add_texts(
                answer, output.name, [len(texts), len(texts[0])], [text for row in texts for text in row]
            )
        elif output.name in TEXTS:
            names = [TEXTS[output.name](one) for one in served.predictions]
            _add_texts(answer, output.name, [len(names)], names)
        else:
            rows = [
                one.probabilities if output.name == "probabilities" else one.logits
                for one in served.predictions
            ]
            values = np.stack(rows).astype("<f4")
            answer.outputs.add(name=output.name, datatype="FP32", shape=values.shape)
            answer.raw_output_contents.append(values.tobytes())
    answer.parameters["schedule"].string_param = ",".join(dict.fromkeys(served.schedules))
    answer.parameters["waiting_ms"].double_param = 1e3 * served.waiting_seconds
    answer.parameters["inference_ms"].double_param = 1e3 * served.inference_seconds
    answer.parameters["batch_size"].int64_param = served.batch_size
    answer.parameters["late"].bool_param = served.late
    answer.parameters["task_version"].int64_param = newest
    if len(set(served.versions)) > 1:
        answer.parameters["task_versions"].string_param = ",".join(map(str, served.versions))
    if query.warnings:
        answer.parameters["warning"].string_param = "; ".join(query.warnings)
    return answer


def _best(prediction: Prediction, classes: int) -> list[str]:
    """The classes with the largest logits, the best first, as Triton writes them: value, index, name."""
    order = np.argsort(-prediction.logits, kind="stable")[:classes]
    return [f"{prediction.logits[one]:f}:{one}:{prediction.class_names[one]}" for one in order]


def _add_texts(answer: pb.ModelInferResponse, name: str, shape: list[int], texts: list[str]) -> None:
    answer.outputs.add(name=name, datatype="BYTES", shape=shape)
    contents = [text.encode() for text in texts]
    answer.raw_output_contents.append(b"".join(LENGTH.pack(len(one)) + one for one in contents))
