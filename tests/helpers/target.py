"""A server of the serving tier's protocol that answers by a script, for tests of load generators."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from io import BytesIO

import grpc
import grpc.aio
import numpy as np
from PIL import Image

from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos import serving_pb2 as serving
from fedstill.protos.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from fedstill.protos.serving_pb2_grpc import ServingServicer, add_ServingServicer_to_server

Script = Callable[[str, np.ndarray, float, float], Awaitable[str | grpc.StatusCode]]
"""Task, uint8 picture, latency in ms and utility to the label that is answered, or to a refusal."""


class MadeServer(GRPCInferenceServiceServicer, ServingServicer):
    """Answers one batch of one per query.

    requests: (task, latency_ms, utility) in order of arrival. tokens: what clients said in `authorization`.
    """

    def __init__(self, tasks: dict[str, Sequence[str]], script: Script, policy: str = "fedstill") -> None:
        self.tasks, self.script, self.policy = tasks, script, policy
        self.requests: list[tuple[str, float, float]] = []
        self.tokens: list[str] = []
        self._batches = 0

    async def ListTasks(self, request, context):  # noqa: N802 - the name is the protocol's
        self._note(context)
        listed = [serving.Task(name=name, version=1, class_names=names) for name, names in self.tasks.items()]
        return serving.ListTasksResponse(tasks=listed, policy=self.policy, image_size=32)

    async def ModelInfer(self, request, context):  # noqa: N802 - the name is the protocol's
        self._note(context)
        told = request.parameters
        asked = (told["task"].string_param, told["latency_ms"].double_param, told["utility"].double_param)
        self.requests.append(asked)
        content = request.raw_input_contents[0]
        (length,) = struct.unpack("<I", content[:4])
        assert request.model_name == "elastic_vit"
        assert request.inputs[0].name == "encoded"
        assert length == len(content) - 4
        said = await self.script(asked[0], np.asarray(Image.open(BytesIO(content[4:]))), *asked[1:])
        if isinstance(said, grpc.StatusCode):
            await context.abort(said, "as scripted")
        label = said.encode()
        self._batches += 1
        return pb.ModelInferResponse(
            model_name="elastic_vit",
            parameters={
                "schedule": pb.InferParameter(string_param="-10"),
                "waiting_ms": pb.InferParameter(double_param=1.5),
                "inference_ms": pb.InferParameter(double_param=2.0 + 1e-6 * self._batches),
                "batch_size": pb.InferParameter(int64_param=1),
            },
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(name="logits", datatype="FP32", shape=[1, 2]),
                pb.ModelInferResponse.InferOutputTensor(name="label", datatype="BYTES", shape=[1]),
            ],
            raw_output_contents=[struct.pack("<2f", 0, 1), struct.pack("<I", len(label)) + label],
        )

    def _note(self, context) -> None:
        self.tokens += [value for key, value in context.invocation_metadata() if key == "authorization"]


class Served:
    """``async with`` a MadeServer on a free port of loopback; gives HOST:PORT. credentials: of TLS."""

    def __init__(self, made: MadeServer, credentials: grpc.ServerCredentials | None = None) -> None:
        self._made, self._credentials = made, credentials

    async def __aenter__(self) -> str:
        self._server = grpc.aio.server()
        add_GRPCInferenceServiceServicer_to_server(self._made, self._server)
        add_ServingServicer_to_server(self._made, self._server)
        if self._credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", self._credentials)
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)


async def never() -> str:
    """For scripts that do not answer."""
    await asyncio.Event().wait()
    return ""
