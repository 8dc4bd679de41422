"""The Open Inference Protocol over gRPC: the table of calls as handlers, and the stream of inferences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message

from fedstill.cloud_server.auth.authenticator import Context
from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.call import REQUEST_ID_KEY
from fedstill.cloud_server.serving.endpoints import grpc_methods
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.infer_parameters import value_of
from fedstill.cloud_server.serving.endpoints.open_inference import REFUSED, Call, refused
from fedstill.cloud_server.serving.endpoints.refusals import line
from fedstill.protos import open_inference_pb2 as pb

INFERENCE_SERVICE = "inference.GRPCInferenceService"
STREAM = "ModelStreamInfer"
MOST_OUTSTANDING = 64
"""Requests of one stream that are read and not answered; the client's next ones wait in its connection."""
FINAL_ASKED, FINAL = "triton_enable_empty_final_response", "triton_final_response"


def inference_handler(calls: Mapping[str, Call], access: AccessPolicy) -> grpc.GenericRpcHandler[Any, Any]:
    """For a gRPC server."""
    handlers = {
        name: grpc_methods.unary(access, call.form.kind, call.answer, call.form.guarded, call.form.operators)
        for name, call in calls.items()
    }
    handlers |= {name: _refusing(name) for name in REFUSED}
    handlers[STREAM] = grpc.stream_stream_rpc_method_handler(
        _Stream(calls, access).handle, response_serializer=grpc_methods.serialised
    )
    return grpc.method_handlers_generic_handler(INFERENCE_SERVICE, handlers)


def _refusing(name: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def handle(_: bytes, context: Any) -> bytes:
        call, error = grpc_methods.begin_call(context), refused(name)
        await context.abort(error.code, line(error), ((REQUEST_ID_KEY, call.request_id),))
        raise AssertionError("abort has raised already")

    return grpc.unary_unary_rpc_method_handler(handle)


class _Stream:
    """Every request of a stream is a query as soon as it is read; answers leave in the requests' order."""

    def __init__(self, calls: Mapping[str, Call], access: AccessPolicy) -> None:
        self._infer, self._access = calls["ModelInfer"], access

    async def handle(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
        """The handler."""
        slots = asyncio.Semaphore(MOST_OUTSTANDING)
        answers: asyncio.Queue[asyncio.Task[Message] | None] = asyncio.Queue()
        running: set[asyncio.Task[Message]] = set()

        async def read() -> None:
            try:
                async for content in requests:
                    await slots.acquire()
                    task = asyncio.create_task(self._answer(content, context))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    answers.put_nowait(task)
            finally:
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await answers.get()) is not None:
                yield await task
                slots.release()
        finally:  # also of a client that has left
            reader.cancel()
            for unsent in running:
                unsent.cancel()

    async def _answer(self, content: bytes, context: Context) -> Message:
        request: Any = None
        grpc_methods.begin_call(context)  # every request of a stream is a call of its own
        try:
            grpc_methods.admit(self._access, context, operators=False)
            request = grpc_methods.parsed(pb.ModelInferRequest, content)
            answer: Any = await self._infer.answer(request, context.time_remaining())
        except RequestError as error:
            return _refusal(request, error)
        if value_of(request.parameters, FINAL_ASKED) is True:
            answer.parameters[FINAL].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer)


def _refusal(request: pb.ModelInferRequest | None, error: RequestError) -> Message:
    """An error message; the response holds what a client needs to go on: the id, the code, the hint."""
    made = pb.ModelStreamInferResponse(error_message=line(error))
    if request is not None:
        made.infer_response.id = request.id
        made.infer_response.model_name = request.model_name
    made.infer_response.parameters["code"].string_param = error.code.name
    if error.retry_milliseconds:
        name = grpc_methods.RETRY_KEY
        made.infer_response.parameters[name].int64_param = error.retry_milliseconds
    return made
