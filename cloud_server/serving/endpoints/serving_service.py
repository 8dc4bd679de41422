"""What answers requests, of every kind: put together around one queue, for both faces."""

from __future__ import annotations

from typing import Any

import grpc

from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.grpc_face import inference_handler
from fedstill.cloud_server.serving.endpoints.open_inference import OpenInference
from fedstill.cloud_server.serving.endpoints.serving_calls import ServingCalls
from fedstill.cloud_server.serving.endpoints.task_queries import TaskQueries
from fedstill.cloud_server.serving.endpoints.task_statistics import TaskStatistics
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks
from fedstill.cloud_server.serving.server.traces import Traces


class ServingService:
    """The calls of both services.

    Args:
        statistics: observes the dispatcher already.
        image_size: side of the first trunk's images.
        policy: its name, reported on request.
        traces: None for none.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        tasks: ServedTasks,
        access: AccessPolicy,
        statistics: TaskStatistics,
        image_size: int,
        policy: str,
        traces: Traces | None = None,
    ) -> None:
        queries = TaskQueries(dispatcher, tasks, statistics, image_size, access.limits, traces)
        self._queries, self.access = queries, access
        self._own = ServingCalls(queries, tasks, policy, image_size)
        self.protocol = OpenInference(queries, tasks, statistics, policy, image_size)

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._queries.ready

    def retire(self) -> None:
        """Report not ready from now on; requests are still answered."""
        self._queries.retiring = True

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """For a gRPC server."""
        return inference_handler(self.protocol, self.access), self._own.handler(self.access)
