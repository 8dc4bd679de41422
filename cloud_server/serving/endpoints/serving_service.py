"""What answers requests, of every kind: put together around one queue, for both faces."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import Message
from sqlalchemy.exc import SQLAlchemyError

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.grpc_face import inference_handler
from fedstill.cloud_server.serving.endpoints.open_inference import Call, OpenInference
from fedstill.cloud_server.serving.endpoints.serving_calls import ServingCalls, own_handler
from fedstill.cloud_server.serving.endpoints.task_queries import TaskQueries
from fedstill.cloud_server.serving.endpoints.task_statistics import TaskStatistics
from fedstill.cloud_server.serving.server.requests import QueryQueue
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks
from fedstill.cloud_server.serving.server.traces import Traces
from fedstill.cloud_server.serving.tasks.registry_thread import RETRY_MS, RegistryThread
from fedstill.common.errors import first_line

LOG = logging.getLogger(__name__)


class Service(ABC):
    """What the faces stand in front of.

    Attributes:
        calls: of the Open Inference Protocol, by name. own_calls: our own.
        access: who may make them.
    """

    def __init__(
        self, calls: Mapping[str, Call], own_calls: Mapping[str, Call], access: AccessPolicy
    ) -> None:
        self.calls = {name: _in_words(name, call) for name, call in calls.items()}
        self.own_calls = {name: _in_words(name, call) for name, call in own_calls.items()}
        self.access = access

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether new requests are welcome."""

    @abstractmethod
    def retire(self) -> None:
        """Report not ready from now on; requests are still answered."""

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """For a gRPC server."""
        return inference_handler(self.calls, self.access), own_handler(self.own_calls, self.access)


class ServingService(Service):
    """The calls of both services, answered here.

    Args:
        statistics: observes the dispatcher already.
        image_size: side of the first trunk's images.
        policy: its name, reported on request.
        traces: None for none.
    """

    def __init__(
        self,
        dispatcher: QueryQueue,
        tasks: ServedTasks,
        access: AccessPolicy,
        statistics: TaskStatistics,
        image_size: int,
        policy: str,
        traces: Traces | None = None,
    ) -> None:
        self._queries = TaskQueries(dispatcher, tasks, statistics, image_size, access.limits, traces)
        changes = RegistryThread()
        super().__init__(
            OpenInference(self._queries, tasks, changes, statistics, policy, image_size).calls,
            ServingCalls(self._queries, tasks, changes, policy, image_size).calls,
            access,
        )

    @property
    def ready(self) -> bool:
        return self._queries.ready

    def retire(self) -> None:
        self._queries.retiring = True


def _in_words(name: str, call: Call) -> Call:
    """A call whose failures are refusals, too: what went wrong inside is for the log, not for clients."""

    async def answer(request: Any, remaining: float | None) -> Message:
        try:
            return await call.answer(request, remaining)
        except RequestError:
            raise
        except SQLAlchemyError as error:
            LOG.error("event=registry_unreadable call=%s reason=%r", name, first_line(error))
            text = "the task registry's database does not answer: ask again"
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "", text, RETRY_MS) from None
        except Exception:
            LOG.exception("event=call_failed call=%s", name)
            raise RequestError(grpc.StatusCode.INTERNAL, "", "the server failed; see its log") from None

    return replace(call, answer=answer)
