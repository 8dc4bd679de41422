"""A thin client of the serving tier: the thesis' Make_Query and Register_Task (Table 3.3) as two Python calls.

No torch: images travel as JPEG or PNG bytes, task parameters as numpy arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from fedstill.protos import serving_pb2 as pb
from fedstill.protos.serving_pb2_grpc import ServingStub

RETRY_KEY = "retry-after-ms"
GRACE_SECONDS = 5.0
"""Beyond a query's latency objective, for the network: the server answers late queries, too."""
CALL_SECONDS = 60.0
"""For calls that are not queries."""


class ServingError(Exception):
    """Why the server refused, one line.

    code: gRPC status. retry_after_ms: after how long a retry makes sense, if the server is overloaded or starting; else
    0.
    """

    def __init__(self, code: grpc.StatusCode, text: str, retry_after_ms: int = 0) -> None:
        super().__init__(text)
        self.code, self.retry_after_ms = code, retry_after_ms


@dataclass(frozen=True)
class ServingAddress:
    """Where the server is. authority: the certificate authority, PEM; None for plain text (``--insecure``).

    certificate, key: the client's own, PEM, for a server that asks for one (``--client-ca``).
    """

    target: str
    authority: bytes | None = None
    token: str = field(default="", repr=False)
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class QueryResponse:
    """The answer for an image.

    Attributes:
        logits: float32 (classes,).
        late: answered after its deadline.
        labels: of a multi-label task, those with a probability of at least one half, the best first.
        embedding: of an embedding task, float32 (width,); it has no label and no logits.
    """

    label: str
    logits: npt.NDArray[np.float32]
    schedule: str
    waiting_ms: float
    inference_ms: float
    batch_size: int
    late: bool
    labels: tuple[str, ...] = ()
    embedding: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class ImagePreprocess:
    """How pictures become a task's input, by timm's names. The server does it for JPEG, PNG and UINT8.

    The central square (of all, if ``crop_mode`` is ``squash``) is resized to image_size / crop_pct, cropped to
    image_size, and normalised by (value / 255 - mean) / std, per channel.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    crop_mode: str


@dataclass(frozen=True)
class ServedTask:
    """One task of a server; ``latency_ms`` and ``utility`` of queries that name none.

    output: ``classes``, ``labels`` (each by itself) or ``embedding``. trunk, image_size: of the weights that it was
    trained on; a server of an older fedstill leaves them unsaid: then those of its description.
    """

    name: str
    version: int
    class_names: tuple[str, ...]
    latency_ms: float
    utility: float
    accuracy: float
    preprocess: ImagePreprocess
    output: str = "classes"
    trunk: str = ""
    image_size: int = 0


@dataclass(frozen=True)
class ServerDescription:
    """A server's tasks and settings. preprocess: of a new task that names none. image_size, trunk, preprocess: of the
    first trunk, if there are several."""

    policy: str
    image_size: int
    trunk: str
    tasks: tuple[ServedTask, ...]
    preprocess: ImagePreprocess


class ServingClient:
    """A connection; a context manager. Every call raises ServingError for a refusal or a server out of reach."""

    def __init__(self, address: ServingAddress) -> None:
        self._metadata = (("authorization", f"Bearer {address.token}"),) if address.token else ()
        if address.authority is None:
            self._channel = grpc.insecure_channel(address.target)
        else:
            own = grpc.ssl_channel_credentials(address.authority, address.key, address.certificate)
            self._channel = grpc.secure_channel(address.target, own)
        self._stub = ServingStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> ServingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def make_query(
        self, task: str, image: bytes, latency_ms: float | None = None, utility: float | None = None
    ) -> QueryResponse:
        """Classify one JPEG or PNG. By default the task's own latency objective and utility."""
        request = pb.MakeQueryRequest(task=task, image=image, latency_ms=latency_ms, utility=utility)
        timeout = CALL_SECONDS if latency_ms is None else GRACE_SECONDS + latency_ms / 1e3
        answer = self._call(self._stub.MakeQuery, request, timeout)
        return QueryResponse(
            label=answer.label,
            logits=np.array(answer.logits, dtype=np.float32),
            schedule=answer.schedule,
            waiting_ms=answer.waiting_ms,
            inference_ms=answer.inference_ms,
            batch_size=answer.batch_size,
            late=answer.late,
            labels=tuple(answer.labels),
            embedding=np.array(answer.embedding, dtype=np.float32),
        )

    def register_task(
        self,
        name: str,
        class_names: Sequence[str],
        head_weight: npt.NDArray[np.float32],
        head_bias: npt.NDArray[np.float32],
        *,
        trunk: str,
        accuracy: float,
        prompts: Mapping[int, npt.NDArray[np.float32]] | None = None,
        latency_ms: float = 600.0,
        utility: float = 1.0,
        preprocess: ImagePreprocess | None = None,
        output: str = "classes",
    ) -> ServedTask:
        """Serve a task, or a new version of it, from the next batch on. Needs an operator's token.

        Args:
            head_weight, head_bias: float32 (classes, width) and (classes,).
            trunk: SHA-256 of the trunk that they were trained on; the server's is in ``describe``.
            accuracy: share of right answers on validation images, without merging or prompts.
            prompts: by number, float32 (layers, number, width).
            preprocess: of the images that they were trained on; as ``describe`` says by default.
            output: ``labels`` if each class is right or not by itself; ``embedding`` needs no classes, and a head of
                shapes (0, width) and (0,).
        """
        tensors = {"head.weight": head_weight, "head.bias": head_bias}
        tensors |= {f"prompts.{count}": values for count, values in (prompts or {}).items()}
        request = pb.RegisterTaskRequest(
            name=name,
            class_names=class_names,
            parameters=save({key: np.ascontiguousarray(one, np.float32) for key, one in tensors.items()}),
            trunk=trunk,
            latency_ms=latency_ms,
            utility=utility,
            accuracy=accuracy,
            preprocess=None if preprocess is None else pb.Preprocess(**asdict(preprocess)),
            output=output,
        )
        return _task(self._call(self._stub.RegisterTask, request))

    def delete_task(self, name: str) -> None:
        """Stop serving a task. Needs an operator's token."""
        self._call(self._stub.DeleteTask, pb.DeleteTaskRequest(name=name))

    def describe(self) -> ServerDescription:
        """The server's tasks and settings."""
        found = self._call(self._stub.ListTasks, pb.ListTasksRequest())
        return ServerDescription(
            policy=found.policy,
            image_size=found.image_size,
            trunk=found.trunk,
            tasks=tuple(_task(task) for task in found.tasks),
            preprocess=_preprocess(found.preprocess),
        )

    def _call(self, method: Callable[..., Any], request: Any, timeout: float = CALL_SECONDS) -> Any:
        try:
            return method(request, timeout=timeout, metadata=(*self._metadata, *_trace_context()))
        except grpc.RpcError as error:
            hints = [one.value for one in error.trailing_metadata() or () if one.key == RETRY_KEY]
            raise ServingError(error.code(), error.details() or "", int(hints[0]) if hints else 0) from None


def _trace_context() -> tuple[tuple[str, str], ...]:
    """Of the caller's span (W3C Trace Context), if the caller uses OpenTelemetry."""
    if "opentelemetry" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(found)
    return tuple(found.items())


def _task(task: pb.Task) -> ServedTask:
    return ServedTask(
        task.name,
        task.version,
        tuple(task.class_names),
        task.latency_ms,
        task.utility,
        task.accuracy,
        _preprocess(task.preprocess),
        task.output or "classes",
        task.trunk,
        task.image_size,
    )


def _preprocess(found: pb.Preprocess) -> ImagePreprocess:
    (red, green, blue), (red_std, green_std, blue_std) = found.mean, found.std
    return ImagePreprocess(
        (red, green, blue),
        (red_std, green_std, blue_std),
        found.interpolation,
        found.crop_pct,
        found.crop_mode,
    )
