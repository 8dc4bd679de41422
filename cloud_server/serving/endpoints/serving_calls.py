"""Our own calls over gRPC: queries with one image, and the tasks of the server. Only operators may change tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import grpc
import numpy as np

from fedstill.cloud_server.serving.endpoints import grpc_methods
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.infer_parameters import (
    LARGEST_UTILITY,
    LONGEST_LATENCY_MS,
    checked,
)
from fedstill.cloud_server.serving.endpoints.infer_request import Limits
from fedstill.cloud_server.serving.endpoints.model_names import AskedTask
from fedstill.cloud_server.serving.endpoints.open_inference import Call, CallForm, bound
from fedstill.cloud_server.serving.endpoints.refusals import bad
from fedstill.cloud_server.serving.endpoints.task_queries import TaskQueries
from fedstill.cloud_server.serving.engine.predictions import ImageError
from fedstill.cloud_server.serving.server import request_images
from fedstill.cloud_server.serving.server.served_tasks import (
    ServedTasks,
    ServedTrunk,
    first_trunk,
    trunk_of,
)
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.cloud_server.serving.tasks.registry_thread import RegistryThread
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import first_line
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.models.vit.task_outputs import TENSORS, Output
from fedstill.models.weights.packing import unpack
from fedstill.protos import serving_pb2 as own

OWN_SERVICE = "fedstill.serving.v1.Serving"
OWN_CALLS: Mapping[str, CallForm] = {
    "ListTasks": CallForm(own.ListTasksRequest, own.ListTasksResponse),
    "MakeQuery": CallForm(own.MakeQueryRequest, own.MakeQueryResponse),
    "RegisterTask": CallForm(own.RegisterTaskRequest, own.Task, operators=True),
    "DeleteTask": CallForm(own.DeleteTaskRequest, own.DeleteTaskResponse, operators=True),
}
OUTPUTS: Mapping[str, Output] = {"": "classes", **{name: name for name in TENSORS}}


class ServingCalls:
    """The calls.

    Args:
        changes: where ``tasks`` are changed.
        policy, image_size: reported on request.
    """

    def __init__(
        self, queries: TaskQueries, tasks: ServedTasks, changes: RegistryThread, policy: str, image_size: int
    ) -> None:
        self._queries, self._tasks, self._changes = queries, tasks, changes
        self._policy, self._size = policy, image_size
        self.calls: Mapping[str, Call] = bound(
            OWN_CALLS,
            {
                "ListTasks": self._list_tasks,
                "MakeQuery": self._make_query,
                "RegisterTask": self._register_task,
                "DeleteTask": self._delete_task,
            },
        )

    async def _list_tasks(self, request: own.ListTasksRequest, _: float | None) -> own.ListTasksResponse:
        tasks, first = self._tasks.served.values(), first_trunk(self._tasks)
        return own.ListTasksResponse(
            tasks=[_task(task, trunk_of(self._tasks, task)) for task in tasks],
            policy=self._policy,
            image_size=self._size,
            trunk=first.fingerprint,
            image_mean=_common(task.preprocess.mean for task in tasks),
            image_std=_common(task.preprocess.std for task in tasks),
            preprocess=_message(first.preprocess),
        )

    async def _make_query(
        self, request: own.MakeQueryRequest, remaining: float | None
    ) -> own.MakeQueryResponse:
        limits = {"latency_ms": LONGEST_LATENCY_MS, "utility": LARGEST_UTILITY}
        given = {
            name: checked(name, getattr(request, name), largest)
            for name, largest in limits.items()
            if request.HasField(name)
        }
        try:
            image = request_images.encoded(request.image, self._queries.form_of(request.task))
        except ImageError as error:
            raise bad("image", str(error)) from None
        left = None if remaining is None else 1e3 * remaining
        served = await self._queries.ask(AskedTask(request.task), [image], Limits(**given, remaining_ms=left))
        (answer,) = served.predictions
        vector = answer.logits.tolist()
        embedded = answer.output == "embedding"
        return own.MakeQueryResponse(
            label=answer.label,
            logits=[] if embedded else vector,
            labels=answer.labels if answer.output == "labels" else (),
            embedding=vector if embedded else [],
            schedule=served.schedules[0],
            waiting_ms=1e3 * served.waiting_seconds,
            inference_ms=1e3 * served.inference_seconds,
            batch_size=served.batch_size,
            late=served.late,
        )

    async def _register_task(self, request: own.RegisterTaskRequest, _: float | None) -> own.Task:
        trunks = self._tasks.trunks
        trunk = trunks.get(request.trunk)
        if trunk is None:
            known = " or ".join(trunks)
            raise bad("trunk", f"the server's is {known}: train the task on that one")
        if not 0 <= request.accuracy <= 1:
            raise bad("accuracy", "must lie between 0 and 1")
        if not 0 < request.latency_ms <= LONGEST_LATENCY_MS:
            raise bad("latency_ms", f"must be above 0, at most {LONGEST_LATENCY_MS:g}")
        checked("utility", request.utility, LARGEST_UTILITY)
        task = await self._changes.call(
            self._tasks.register,
            request.name,
            _parameters(request, trunk.preprocess),
            request.latency_ms,
            request.utility,
            request.accuracy,
            trunk.fingerprint,
        )
        return _task(task, trunk)

    async def _delete_task(self, request: own.DeleteTaskRequest, _: float | None) -> own.DeleteTaskResponse:
        await self._changes.call(self._tasks.delete, request.name)
        return own.DeleteTaskResponse()


def own_handler(calls: Mapping[str, Call], access: AccessPolicy) -> grpc.GenericRpcHandler[Any, Any]:
    """For a gRPC server."""
    handlers = {
        name: grpc_methods.unary(access, call.form.kind, call.answer, call.form.guarded, call.form.operators)
        for name, call in calls.items()
    }
    return grpc.method_handlers_generic_handler(OWN_SERVICE, handlers)


def _task(task: TaskVersion, trunk: ServedTrunk) -> own.Task:
    return own.Task(
        name=task.name,
        version=task.version,
        class_names=task.class_names,
        latency_ms=task.latency_ms,
        utility=task.utility,
        accuracy=task.accuracy,
        preprocess=_message(task.preprocess),
        output=task.output,
        trunk=trunk.fingerprint,
        image_size=trunk.image_size,
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
        raise bad("preprocess", str(error)) from None


def _parameters(request: own.RegisterTaskRequest, usual: Preprocess) -> TaskParameters:
    preprocess = _asked_preprocess(request, usual)
    output = OUTPUTS.get(request.output)
    if output is None:
        raise bad("output", f"{request.output[:40]!r} is not one of {', '.join(TENSORS)}")
    try:
        tensors = unpack(np.frombuffer(request.parameters, dtype=np.uint8))
        weight, bias = tensors.pop("head.weight").float(), tensors.pop("head.bias").float()
        prompts = {int(name.removeprefix("prompts.")): tensor.float() for name, tensor in tensors.items()}
        return TaskParameters(tuple(request.class_names), weight, bias, prompts, preprocess, output)
    except KeyError as error:
        raise bad("parameters", f"have no {error.args[0]}") from None
    except ValueError as error:
        raise bad("parameters", first_line(error)) from None
