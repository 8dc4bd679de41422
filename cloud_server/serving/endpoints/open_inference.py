"""The Open Inference Protocol without a transport: messages in, messages out, RequestError for a refusal.

gRPC and REST are two faces of the one table of calls that this makes, so they cannot answer differently.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf.message import Message

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.call import current
from fedstill.cloud_server.serving.endpoints import model_descriptions, model_repository
from fedstill.cloud_server.serving.endpoints.infer_request import parse
from fedstill.cloud_server.serving.endpoints.infer_response import make_response
from fedstill.cloud_server.serving.endpoints.model_names import find_model
from fedstill.cloud_server.serving.endpoints.refusals import bad
from fedstill.cloud_server.serving.endpoints.task_queries import TaskQueries
from fedstill.cloud_server.serving.endpoints.task_statistics import TaskStatistics
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks, trunk_of
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.cloud_server.serving.tasks.registry_thread import RegistryThread
from fedstill.protos import open_inference_pb2 as pb

LOG = logging.getLogger(__name__)

EXTENSIONS = (
    "classification",
    "binary_tensor_data",
    "parameters",
    "schedule_policy",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
)
NO_SHARED_MEMORY = "there is no shared memory here: send tensors in requests"
NO_TRACE = "there are no trace settings here: decisions.jsonl in the server's folder says what it decided"
NO_LOG = "there are no log settings here: the server logs to its standard error"
REFUSED = {
    **{
        f"{kind}SharedMemory{verb}": NO_SHARED_MEMORY
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": NO_TRACE,
    "LogSettings": NO_LOG,
}
"""Triton's calls that are refused, and what is said."""


Answer = Callable[[Any, float | None], Awaitable[Message]]
"""Request and seconds that are left of the call (None: no end) -> response. Raises RequestError."""


@dataclass(frozen=True)
class CallForm:
    """What a face has to know of a call before anything answers it.

    kind: of the request. reply: of the response. guarded: needs a token. operators: and an operator's.
    """

    kind: type[Message]
    reply: type[Message]
    guarded: bool = True
    operators: bool = False


@dataclass(frozen=True)
class Call:
    """A call that is answered here."""

    form: CallForm
    answer: Answer


CALLS: Mapping[str, CallForm] = {
    "ServerLive": CallForm(pb.ServerLiveRequest, pb.ServerLiveResponse, guarded=False),
    "ServerReady": CallForm(pb.ServerReadyRequest, pb.ServerReadyResponse, guarded=False),
    "ModelReady": CallForm(pb.ModelReadyRequest, pb.ModelReadyResponse, guarded=False),
    "ServerMetadata": CallForm(pb.ServerMetadataRequest, pb.ServerMetadataResponse),
    "ModelMetadata": CallForm(pb.ModelMetadataRequest, pb.ModelMetadataResponse),
    "ModelInfer": CallForm(pb.ModelInferRequest, pb.ModelInferResponse),
    "ModelConfig": CallForm(pb.ModelConfigRequest, pb.ModelConfigResponse),
    "ModelStatistics": CallForm(pb.ModelStatisticsRequest, pb.ModelStatisticsResponse),
    "RepositoryIndex": CallForm(pb.RepositoryIndexRequest, pb.RepositoryIndexResponse),
    "RepositoryModelLoad": CallForm(
        pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse, operators=True
    ),
    "RepositoryModelUnload": CallForm(
        pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse, operators=True
    ),
}
"""The calls of the protocol that are answered, by name."""


def bound(forms: Mapping[str, CallForm], answers: Mapping[str, Answer]) -> Mapping[str, Call]:
    """The calls with what answers each."""
    return {name: Call(form, answers[name]) for name, form in forms.items()}


class OpenInference:
    """The calls for what is served.

    Args:
        changes: where ``tasks`` are changed.
        policy: its name, reported on request.
        image_size: side of the first trunk's images.
    """

    def __init__(
        self,
        queries: TaskQueries,
        tasks: ServedTasks,
        changes: RegistryThread,
        statistics: TaskStatistics,
        policy: str,
        image_size: int,
    ) -> None:
        self._queries, self._tasks, self._statistics = queries, tasks, statistics
        self._changes, self._reads = changes, RegistryThread()
        self._policy, self._size = policy, image_size
        self._warned: set[str] = set()
        self.calls: Mapping[str, Call] = bound(
            CALLS,
            {
                "ServerLive": self._server_live,
                "ServerReady": self._server_ready,
                "ModelReady": self._model_ready,
                "ServerMetadata": self._server_metadata,
                "ModelMetadata": self._model_metadata,
                "ModelInfer": self._model_infer,
                "ModelConfig": self._model_config,
                "ModelStatistics": self._model_statistics,
                "RepositoryIndex": self._index,
                "RepositoryModelLoad": self._load,
                "RepositoryModelUnload": self._unload,
            },
        )

    async def _server_live(self, request: pb.ServerLiveRequest, _: float | None) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: pb.ServerReadyRequest, _: float | None) -> Message:
        return pb.ServerReadyResponse(ready=self._queries.ready)

    async def _model_ready(self, request: pb.ModelReadyRequest, _: float | None) -> Message:
        """A task of a trunk that will be loaded when it is asked for is ready: whoever waits for this would else never
        ask. One whose trunk could not be loaded is not."""
        try:
            task = find_model(self._tasks.served, request.name, request.version)
        except RequestError:
            return pb.ModelReadyResponse(ready=False)
        failed = task is not None and self._tasks.states[trunk_of(self._tasks, task).fingerprint].failed
        return pb.ModelReadyResponse(ready=self._queries.ready and not failed)

    async def _server_metadata(self, request: pb.ServerMetadataRequest, _: float | None) -> Message:
        extensions = [*EXTENSIONS, f"policy:{self._policy}"]
        return pb.ServerMetadataResponse(name="fedstill", version=version("fedstill"), extensions=extensions)

    async def _model_metadata(self, request: pb.ModelMetadataRequest, _: float | None) -> Message:
        task = find_model(self._tasks.served, request.name, request.version)
        return model_descriptions.metadata(task, *self._sizes(task))

    async def _model_config(self, request: pb.ModelConfigRequest, _: float | None) -> Message:
        task = find_model(self._tasks.served, request.name, request.version)
        made = model_descriptions.config(task, *self._sizes(task))
        return pb.ModelConfigResponse(config=made)

    def _sizes(self, task: TaskVersion | None) -> tuple[int, int]:
        """Of images and embeddings."""
        trunk = trunk_of(self._tasks, task)
        return (self._size if task is None else trunk.image_size), trunk.width

    async def _model_statistics(self, request: pb.ModelStatisticsRequest, _: float | None) -> Message:
        served = self._tasks.served
        one = find_model(served, request.name, request.version) if request.name else None
        if request.version and not request.name:
            raise bad("version", "needs the name of a model")
        wanted = served.values() if one is None else [one]
        return pb.ModelStatisticsResponse(model_stats=[self._statistics.message(task) for task in wanted])

    async def _model_infer(self, request: pb.ModelInferRequest, remaining: float | None) -> Message:
        current().name(request.id)
        query = parse(request, self._tasks.served, self._queries.form_of, remaining)
        if query.warnings and query.task.name not in self._warned and query.task.name in self._tasks.served:
            self._warned.add(query.task.name)
            LOG.warning("event=unlikely_request task=%s reason=%r", query.task.name, query.warnings[0])
        served = await self._queries.ask(query.task, query.images, query.limits)
        return make_response(request, query, served)

    async def _index(self, request: pb.RepositoryIndexRequest, _: float | None) -> Message:
        return await self._reads.call(model_repository.index, self._tasks, request)

    async def _load(self, request: pb.RepositoryModelLoadRequest, _: float | None) -> Message:
        model_repository.check_repository(request.repository_name)
        wanted = model_repository.wanted_version(request)
        await self._change(self._tasks.load, request.model_name, wanted)
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest, _: float | None) -> Message:
        model_repository.check_repository(request.repository_name)
        await self._change(self._tasks.delete, request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _change(self, change: Callable[..., object], *arguments: object) -> None:
        try:
            await self._changes.call(change, *arguments)
        except RequestError as error:  # its own calls say `name`
            field = "model_name" if error.field else ""
            raise RequestError(error.code, field, str(error), error.retry_milliseconds) from None


def refused(method: str) -> RequestError:
    """The refusal of one of ``REFUSED``."""
    return RequestError(grpc.StatusCode.UNIMPLEMENTED, method, REFUSED[method])
