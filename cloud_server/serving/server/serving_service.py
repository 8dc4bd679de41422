"""The gRPC interface of the serving tier: the Open Inference Protocol, and our own calls beside it.

Both end in the same queue. Requests are parsed here and not by gRPC, so that bytes that are not a request get an answer
that says so. Health requests need no token, all others do. Only operators may change tasks.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from fedstill.cloud_server.auth.authenticator import Authorise, Context, bearer_token
from fedstill.cloud_server.auth.tokens import TokenError
from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.engine.predictions import ImageError
from fedstill.cloud_server.serving.scheduling.queries import Rejection, RejectionReason
from fedstill.cloud_server.serving.server import open_inference as protocol
from fedstill.cloud_server.serving.server import request_images
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.requests import Outcome, Prepare, Response
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.models.weights.packing import unpack
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos import serving_pb2 as own

LOG = logging.getLogger(__name__)

INFERENCE_SERVICE = "inference.GRPCInferenceService"
OWN_SERVICE = "fedstill.serving.v1.Serving"
RETRY_KEY = "retry-after-ms"
PLATFORM = "fedstill_elastic_vit"

CODES: dict[RejectionReason, grpc.StatusCode] = {
    "too_late": grpc.StatusCode.DEADLINE_EXCEEDED,
    "evicted": grpc.StatusCode.DEADLINE_EXCEEDED,
    "overload": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unknown_task": grpc.StatusCode.NOT_FOUND,
    "bad_image": grpc.StatusCode.INVALID_ARGUMENT,
    "draining": grpc.StatusCode.UNAVAILABLE,
    "cancelled": grpc.StatusCode.CANCELLED,
    "failed": grpc.StatusCode.INTERNAL,
}
FIELDS: dict[RejectionReason, str] = {
    "too_late": "latency_ms",
    "evicted": "latency_ms",
    "unknown_task": "task",
    "bad_image": "inputs",
}

Kind = TypeVar("Kind", bound=Message)


@dataclass(frozen=True)
class AccessPolicy:
    """Access policy. authorise: None allows all callers everything (``--insecure``). operators: names of tokens
    that may change tasks."""

    authorise: Authorise | None
    operators: frozenset[str] = frozenset()


class ServingService:
    """Handlers of both services.

    Args:
        image_size: side of the engine's images.
        policy: its name, reported on request.
    """

    def __init__(
        self, dispatcher: Dispatcher, tasks: ServedTasks, access: AccessPolicy, image_size: int, policy: str
    ) -> None:
        self._dispatcher, self._tasks, self._access = dispatcher, tasks, access
        self._size, self._policy = image_size, policy

    @property
    def ready(self) -> bool:
        return not self._dispatcher.draining

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """For a gRPC server."""
        inference = {
            "ServerLive": self._method(pb.ServerLiveRequest, self._server_live, guarded=False),
            "ServerReady": self._method(pb.ServerReadyRequest, self._server_ready, guarded=False),
            "ModelReady": self._method(pb.ModelReadyRequest, self._model_ready, guarded=False),
            "ServerMetadata": self._method(pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": self._method(pb.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": self._method(pb.ModelInferRequest, self._model_infer),
        }
        ours = {
            "ListTasks": self._method(own.ListTasksRequest, self._list_tasks),
            "MakeQuery": self._method(own.MakeQueryRequest, self._make_query),
            "RegisterTask": self._method(own.RegisterTaskRequest, self._register_task, operators=True),
            "DeleteTask": self._method(own.DeleteTaskRequest, self._delete_task, operators=True),
        }
        return (
            grpc.method_handlers_generic_handler(INFERENCE_SERVICE, inference),
            grpc.method_handlers_generic_handler(OWN_SERVICE, ours),
        )

    def _method(
        self,
        kind: type[Kind],
        answer: Callable[[Kind], Awaitable[Message]],
        guarded: bool = True,
        operators: bool = False,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def parse(content: bytes) -> Kind | None:
            try:
                return kind.FromString(content)
            except DecodeError:
                return None

        async def handle(request: Kind | None, context: Context) -> Message:
            try:
                if guarded:
                    self._admit(context, operators)
                if request is None:
                    raise protocol.bad("message", f"not a {kind.DESCRIPTOR.name}")
                return await answer(request)
            except RequestError as error:
                code, retry = error.code, error.retry_milliseconds
                text = f"{error.field}: {error}" if error.field else str(error)
            # gRPC keeps what abort raises, and with it this frame and an error that is being handled, until the garbage
            # collector comes by: neither may hold an image, or a burst of refusals costs hundreds of megabytes.
            request = None
            await context.abort(code, text, ((RETRY_KEY, str(retry)),) if retry else ())
            raise AssertionError("abort has raised already")

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=parse,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _admit(self, context: Context, operators: bool) -> None:
        if self._access.authorise is None:
            return
        try:
            name = self._access.authorise(bearer_token(context))
        except TokenError as error:
            LOG.warning("event=caller_refused peer=%s reason=%s", context.peer(), error)
            raise RequestError(grpc.StatusCode.UNAUTHENTICATED, "authorization", str(error)) from None
        if operators and name not in self._access.operators:
            text = f"{name} is not an operator of this server"
            raise RequestError(grpc.StatusCode.PERMISSION_DENIED, "authorization", text)

    async def _server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.ready)

    async def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        protocol.check_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self.ready)

    async def _server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        extensions = [OWN_SERVICE, f"policy:{self._policy}"]
        return pb.ServerMetadataResponse(name="fedstill", version=version("fedstill"), extensions=extensions)

    async def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        protocol.check_model(request.name, request.version)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=protocol.MODEL,
            versions=[protocol.VERSION],
            platform=PLATFORM,
            inputs=[  # of which a request gives one
                tensor(name="image", datatype="FP32", shape=[-1, 3, self._size, self._size]),
                tensor(name="image", datatype="UINT8", shape=[-1, -1, -1, 3]),
                tensor(name="encoded", datatype="BYTES", shape=[-1]),
            ],
            outputs=[
                tensor(name="logits", datatype="FP32", shape=[-1, -1]),
                tensor(name="label", datatype="BYTES", shape=[-1]),
            ],
        )

    async def _model_infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        query = protocol.parse(request, self._size, self._preprocess)
        served = await self._ask(query.task, query.images, query.latency_ms, query.utility)
        return protocol.response(request, query, served)

    async def _list_tasks(self, request: own.ListTasksRequest) -> own.ListTasksResponse:
        tasks = self._tasks.served.values()
        return own.ListTasksResponse(
            tasks=[_task(task) for task in tasks],
            policy=self._policy,
            image_size=self._size,
            trunk=self._tasks.trunk,
            image_mean=_common(task.preprocess.mean for task in tasks),
            image_std=_common(task.preprocess.std for task in tasks),
            preprocess=_message(self._tasks.preprocess),
        )

    async def _make_query(self, request: own.MakeQueryRequest) -> own.MakeQueryResponse:
        limits = {"latency_ms": protocol.LONGEST_LATENCY_MS, "utility": protocol.LARGEST_UTILITY}
        latency_ms, utility = (
            protocol.checked_number(name, getattr(request, name), largest) if request.HasField(name) else None
            for name, largest in limits.items()
        )
        try:
            form = request_images.ImageForm(self._size, self._preprocess(request.task))
            image = request_images.encoded(request.image, form)
        except ImageError as error:
            raise protocol.bad("image", str(error)) from None
        served = await self._ask(request.task, [image], latency_ms, utility)
        return own.MakeQueryResponse(
            label=served.predictions[0].label,
            logits=served.predictions[0].logits.tolist(),
            schedule=served.schedules[0],
            waiting_ms=1e3 * served.waiting_seconds,
            inference_ms=1e3 * served.inference_seconds,
            batch_size=served.batch_size,
            late=served.late,
        )

    async def _register_task(self, request: own.RegisterTaskRequest) -> own.Task:
        if request.trunk != self._tasks.trunk:
            raise protocol.bad("trunk", f"the server's is {self._tasks.trunk}: train the task on that one")
        if not 0 <= request.accuracy <= 1:
            raise protocol.bad("accuracy", "must lie between 0 and 1")
        if not 0 < request.latency_ms <= protocol.LONGEST_LATENCY_MS:
            raise protocol.bad("latency_ms", f"must be above 0, at most {protocol.LONGEST_LATENCY_MS:g}")
        protocol.checked_number("utility", request.utility, protocol.LARGEST_UTILITY)
        task = await asyncio.to_thread(
            self._tasks.register,
            request.name,
            _parameters(request, self._tasks.preprocess),
            request.latency_ms,
            request.utility,
            request.accuracy,
        )
        return _task(task)

    async def _delete_task(self, request: own.DeleteTaskRequest) -> own.DeleteTaskResponse:
        await asyncio.to_thread(self._tasks.delete, request.name)
        return own.DeleteTaskResponse()

    def _preprocess(self, task: str) -> Preprocess:
        """Of a task's images; one that is not served is refused later, by its name."""
        known = self._tasks.served.get(task)
        return known.preprocess if known else self._tasks.preprocess

    async def _ask(
        self, task: str, images: Sequence[Prepare], latency_ms: float | None, utility: float | None
    ) -> Response:
        """Through the queue. Raises RequestError for a refusal; if the client leaves, its request is cancelled."""
        known = self._tasks.served.get(task)
        if latency_ms is None:
            latency_ms = known.latency_ms if known else 0.0
        if utility is None:
            utility = known.utility if known else 0.0
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not answer.done():
                answer.set_result(outcome)

        def deliver(outcome: Outcome) -> None:
            loop.call_soon_threadsafe(settle, outcome)

        request = self._dispatcher.submit(task, images, latency_ms / 1e3, utility, deliver)
        try:
            outcome = await answer
        except asyncio.CancelledError:
            self._dispatcher.cancel(request)
            raise
        if isinstance(outcome, Rejection):
            retry = CODES[outcome.reason] is grpc.StatusCode.RESOURCE_EXHAUSTED
            raise RequestError(
                CODES[outcome.reason],
                FIELDS.get(outcome.reason, ""),
                outcome.message,
                max(1, math.ceil(1e3 * outcome.retry_after_seconds)) if retry else 0,
            )
        return outcome


def _task(task: TaskVersion) -> own.Task:
    return own.Task(
        name=task.name,
        version=task.version,
        class_names=task.class_names,
        latency_ms=task.latency_ms,
        utility=task.utility,
        accuracy=task.accuracy,
        preprocess=_message(task.preprocess),
    )


def _message(preprocess: Preprocess) -> own.Preprocess:
    return own.Preprocess(**to_plain(preprocess))


def _common(values: Iterable[tuple[float, ...]]) -> float:
    """The one value of all channels of all tasks; 0 if they differ."""
    distinct = {value for channels in values for value in channels}
    return distinct.pop() if len(distinct) == 1 else 0.0


def _asked_preprocess(request: own.RegisterTaskRequest, usual: Preprocess) -> Preprocess:
    if not request.HasField("preprocess"):
        return usual
    asked = request.preprocess
    plain = {field.name: getattr(asked, field.name) for field in fields(Preprocess)}
    try:
        return from_plain(Preprocess, {**plain, "mean": tuple(asked.mean), "std": tuple(asked.std)})
    except ValueError as error:
        raise protocol.bad("preprocess", str(error)) from None


def _parameters(request: own.RegisterTaskRequest, usual: Preprocess) -> TaskParameters:
    preprocess = _asked_preprocess(request, usual)
    try:
        tensors = unpack(np.frombuffer(request.parameters, dtype=np.uint8))
        weight, bias = tensors.pop("head.weight").float(), tensors.pop("head.bias").float()
        prompts = {int(name.removeprefix("prompts.")): tensor.float() for name, tensor in tensors.items()}
        return TaskParameters(tuple(request.class_names), weight, bias, prompts, preprocess)
    except KeyError as error:
        raise protocol.bad("parameters", f"have no {error.args[0]}") from None
    except ValueError as error:
        raise protocol.bad("parameters", str(error).splitlines()[0]) from None
