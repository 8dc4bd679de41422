"""A call on its way from a front to a replica and back: plain values and the protocol's own bytes, nothing of ours."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.call import Call
from fedstill.cloud_server.serving.endpoints import infer_parameters as parameters
from fedstill.cloud_server.serving.endpoints.image_inputs import LARGEST_REQUEST_IMAGES
from fedstill.cloud_server.serving.endpoints.infer_request import MICROSECONDS_PER_MS
from fedstill.cloud_server.serving.endpoints.model_names import MODEL
from fedstill.cloud_server.serving.scheduling.price import AskedQuery
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos import serving_pb2 as own


@dataclass(frozen=True, slots=True)
class PassedCall:
    """own: of our own service, else of the Open Inference Protocol. remaining: seconds that were left of the call when
    it came to the front, None for no end; elapsed: since then. query: for the router; None for a call that asks no
    model. The others as in ``Call``."""

    own: bool
    method: str
    remaining: float | None = None
    elapsed: float = 0.0
    request_id: str = ""
    given: bool = False
    node: str = ""
    trace: tuple[tuple[str, str], ...] = ()
    query: AskedQuery | None = None

    def caller(self) -> Call:
        """As the replica's code sees it."""
        return Call(self.request_id, self.given, self.node, dict(self.trace), self.elapsed)


def plain_call(call: PassedCall) -> dict[str, Any]:
    """As plain values."""
    return asdict(call)


def read_call(plain: dict[str, Any]) -> PassedCall:
    """Of plain values."""
    return PassedCall(**{**plain, "query": read_query(plain)})


def read_query(plain: dict[str, Any]) -> AskedQuery | None:
    """Only what a router needs."""
    return AskedQuery(**plain["query"]) if plain.get("query") else None


def plain_refusal(error: RequestError) -> dict[str, Any]:
    """An answer that is a refusal, as plain values."""
    return {
        "code": error.code.name, "field": error.field, "text": str(error), "retry": error.retry_milliseconds,
    }  # fmt: skip


def read_reply(plain: dict[str, Any], kind: type[Message]) -> Message:
    """The response. Raises RequestError for a refusal."""
    if "code" in plain:
        code = grpc.StatusCode[plain["code"]]
        raise RequestError(code, plain["field"], plain["text"], plain["retry"])
    return kind.FromString(plain["reply"])


def asked_query(method: str, request: Any, remaining: float | None) -> AskedQuery | None:
    """What a router has to know of a request. It may be wrong in many ways: the replica says so."""
    if method == "MakeQuery":
        return _of_own(request, remaining)
    if method != "ModelInfer":
        return None
    given = request.parameters
    task = request.model_name
    if task == MODEL and isinstance(named := parameters.value_of(given, "task"), str):
        task = named
    timeout = _number(given, "timeout", MICROSECONDS_PER_MS * parameters.LONGEST_LATENCY_MS)
    return AskedQuery(
        task,
        _number(given, "utility", parameters.LARGEST_UTILITY),
        _seconds(_number(given, "latency_ms", parameters.LONGEST_LATENCY_MS)),
        images_of(request),
        parameters.priority_factor(_number(given, "priority", 2.0**64)),
        min(timeout / 1e6 if timeout else math.inf, math.inf if remaining is None else remaining),
    )


def images_of(request: pb.ModelInferRequest) -> int:
    """As many as the request says that it holds, within what may be."""
    shape = request.inputs[0].shape if request.inputs else ()
    return min(max(1, shape[0]), LARGEST_REQUEST_IMAGES) if shape else 1


def _of_own(request: own.MakeQueryRequest, remaining: float | None) -> AskedQuery:
    latency = _seconds(_field(request, "latency_ms", parameters.LONGEST_LATENCY_MS))
    utility = _field(request, "utility", parameters.LARGEST_UTILITY)
    return AskedQuery(request.task, utility, latency, most=math.inf if remaining is None else remaining)


def _field(request: own.MakeQueryRequest, name: str, largest: float) -> float | None:
    if not request.HasField(name):
        return None
    try:
        return parameters.checked(name, getattr(request, name), largest)
    except RequestError:
        return None


def _number(given: parameters.Parameters, name: str, largest: float) -> float | None:
    try:
        return parameters.number(given, name, largest)
    except RequestError:
        return None


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
