"""What a server answers while it is measured and warmed up: it is live, not ready, and says what it is doing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc

from fedstill.cloud_server.serving.endpoints.grpc_face import INFERENCE_SERVICE, STREAM
from fedstill.cloud_server.serving.endpoints.grpc_methods import RETRY_KEY
from fedstill.cloud_server.serving.endpoints.serving_calls import OWN_SERVICE
from fedstill.protos import open_inference_pb2 as pb

LOG = logging.getLogger(__name__)

RETRY_MS = 2000
"""After which a refused client may ask again."""


class StartProgress:
    """What the start is doing now; told by its thread, read by others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began, self._doing = time.monotonic(), "opening"

    def tell(self, doing: str) -> None:
        """Begin another step, one line for a person; it goes to the log."""
        with self._lock:
            self._doing = doing
        LOG.info("event=starting doing=%r", doing)

    @property
    def text(self) -> str:
        """The present step, and the seconds since the start."""
        with self._lock:
            return f"{self._doing} ({time.monotonic() - self._began:.0f} s so far)"

    @property
    def refusal(self) -> str:
        """What a request is told."""
        return f"the server is starting: {self.text}; try again later"


class StartingHandlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # none at run time
    """Handlers of both services that give way to others once ``ready`` was called."""

    def __init__(self, progress: StartProgress) -> None:
        self._progress = progress
        self._handlers: Sequence[grpc.GenericRpcHandler[Any, Any]] = ()

    def ready(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """From the next call on, these answer."""
        self._handlers = handlers

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call, as gRPC asks for it."""
        for one in self._handlers:
            found = one.service(details)
            if found is not None:
                return found
        service, _, method = details.method.removeprefix("/").partition("/")
        if self._handlers or service not in (INFERENCE_SERVICE, OWN_SERVICE):
            return None
        answers = {
            "ServerLive": pb.ServerLiveResponse(live=True),
            "ServerReady": pb.ServerReadyResponse(ready=False),
            "ModelReady": pb.ModelReadyResponse(ready=False),
        }
        answer = answers.get(method) if service == INFERENCE_SERVICE else None

        async def handle(_: Any, context: Any) -> bytes:
            if answer is None:
                text = self._progress.refusal
                await context.abort(grpc.StatusCode.UNAVAILABLE, text, ((RETRY_KEY, str(RETRY_MS)),))
                raise AssertionError("abort has raised already")
            return answer.SerializeToString()

        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler(handle)
        return grpc.unary_unary_rpc_method_handler(handle)
