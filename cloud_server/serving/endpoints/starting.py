"""What a server answers while it is measured and warmed up: it is live, not ready, and says what it is doing."""

from __future__ import annotations

import logging
import re
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

PART = re.compile(r"(\d+) of (\d+)")
"""In a step's line: how far it is."""
MOST_STEPS = 20
RETRY_MS = 2000
"""After which a refused client may ask again."""


class StartProgress:
    """What the start is doing now; told by its thread, read by others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._steps = [(self._began, "opening")]

    def tell(self, doing: str) -> None:
        """Begin another step, one line for a person; it goes to the log. "3 of 8" in it says how far the step is."""
        with self._lock:
            now = time.monotonic()
            if _kind(doing) == _kind(self._doing):
                now = self._steps.pop()[0]  # the same step is farther
            self._steps = [*self._steps[-MOST_STEPS + 1 :], (now, doing)]
        LOG.info("event=starting doing=%r", doing)

    @property
    def _doing(self) -> str:
        return self._steps[-1][1]

    @property
    def text(self) -> str:
        """The present step, and the seconds since the start."""
        with self._lock:
            return f"{self._doing} ({time.monotonic() - self._began:.0f} s so far)"

    @property
    def plain(self) -> dict[str, Any]:
        """For the page: the present step, the seconds since the start, how far the step is (``done`` of ``of`` parts,
        or null), and the steps before with the seconds that each took."""
        with self._lock:
            steps, now = list(self._steps), time.monotonic()
        ends = [began for began, _ in steps[1:]]
        part = PART.search(steps[-1][1])
        return {
            "doing": steps[-1][1],
            "seconds": round(now - self._began, 1),
            "done": max(0, int(part[1]) - 1) if part else None,
            "of": int(part[2]) if part else None,
            "steps": [
                {"doing": doing, "seconds": round(end - began, 1)}
                for (began, doing), end in zip(steps[:-1], ends, strict=True)
            ],
        }

    @property
    def refusal(self) -> str:
        """What a request is told."""
        return f"the server is starting: {self.text}; try again later"


def _kind(doing: str) -> str:
    """The first two words, among them a trunk's name: what they have in common is one step that goes on."""
    return " ".join(doing.split()[:2])


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
