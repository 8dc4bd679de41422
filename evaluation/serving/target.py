"""A live server, queried over the Open Inference Protocol, with or without TLS and a token.

Images travel as PNG files, as from a user's device, so that decoding and resizing are the server's work.
"""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType

import grpc
import grpc.aio

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.endpoints.model_names import MODEL
from fedstill.common.errors import DataError
from fedstill.evaluation.serving.live_loadtest import Description
from fedstill.evaluation.serving.open_loop import Response, ResponseKind
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fedstill.protos.serving_pb2 import ListTasksRequest
from fedstill.protos.serving_pb2_grpc import ServingStub

CONNECT_SECONDS = 10.0
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new TCP connection
    ("grpc.max_receive_message_length", 2**20),
)
REJECTIONS: dict[grpc.StatusCode, ResponseKind] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "too_late",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "overload",
}


def address_of(
    target: str, *, insecure: bool, authority: Path | None, token_file: Path | None
) -> ServingAddress:
    """Make a target from a user's options. Raises DataError, one line, if they do not fit together or cannot be
    read."""
    host, colon, port = target.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise DataError(f"--target {target!r}: write HOST:PORT, for instance 127.0.0.1:8001")
    if insecure:
        if authority is not None or token_file is not None:
            raise DataError("--insecure goes without --ca and --token-file: drop one or the other")
        return ServingAddress(target)
    if authority is None:
        raise DataError("--target needs --ca FILE (and --token-file FILE), or --insecure")
    token = "" if token_file is None else _read(token_file).decode("ascii", "replace").strip()
    return ServingAddress(target, _read(authority), token)


class GrpcTarget:
    """One connection to a server. Use as ``async with``."""

    def __init__(self, address: ServingAddress) -> None:
        self._address = address
        self._metadata = (("authorization", f"Bearer {address.token}"),) if address.token else ()

    async def __aenter__(self) -> GrpcTarget:
        address = self._address
        if address.authority is None:
            self._channel = grpc.aio.insecure_channel(address.target, options=OPTIONS)
        else:
            trust = grpc.ssl_channel_credentials(address.authority)
            self._channel = grpc.aio.secure_channel(address.target, trust, options=OPTIONS)
        self._infer = GRPCInferenceServiceStub(self._channel).ModelInfer  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)

    async def describe(self) -> Description:
        """Ask for policy and tasks. Raises DataError if nothing answers."""
        try:
            stub = ServingStub(self._channel)  # type: ignore[no-untyped-call]
            asking = stub.ListTasks(ListTasksRequest(), timeout=CONNECT_SECONDS, metadata=self._metadata)
            listed = await asking
        except grpc.aio.AioRpcError as error:
            raise DataError(f"{self._address.target}: {_reason(error)}") from None
        return Description(listed.policy, {task.name: tuple(task.class_names) for task in listed.tasks})

    async def query(self, task: str, picture: bytes, latency_ms: float, utility: float) -> Response:
        """Send one image; every outcome is a response."""
        request = pb.ModelInferRequest(
            model_name=MODEL,
            parameters={
                "task": pb.InferParameter(string_param=task),
                "latency_ms": pb.InferParameter(double_param=latency_ms),
                "utility": pb.InferParameter(double_param=utility),
            },
            inputs=[pb.ModelInferRequest.InferInputTensor(name="encoded", datatype="BYTES", shape=[1])],
            raw_input_contents=[struct.pack("<I", len(picture)) + picture],
        )
        try:
            # No timeout of its own: late answers are to be recorded, not cut off.
            answer = await self._infer(request, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            kind = REJECTIONS.get(error.code(), "failed")
            return Response(kind, detail=_reason(error) if kind == "failed" else "")
        return _response(answer)


def _response(answer: pb.ModelInferResponse) -> Response:
    for place, output in enumerate(answer.outputs):
        if output.name == "label":
            # An element of BYTES is preceded by its length.
            label = answer.raw_output_contents[place][4:].decode("utf-8", "replace")
            told = answer.parameters
            return Response(
                "answered",
                label=label,
                schedule=told["schedule"].string_param,
                waiting_ms=told["waiting_ms"].double_param,
                inference_ms=told["inference_ms"].double_param,
                batch_size=told["batch_size"].int64_param,
            )
    return Response("failed", detail="the answer has no output named label")


def _reason(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name} {error.details() or ''}".strip()[:200]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
