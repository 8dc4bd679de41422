"""The refusals of both faces: their codes, their fields, one line each."""

from __future__ import annotations

import grpc

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.scheduling.queries import RejectionReason

CODES: dict[RejectionReason, grpc.StatusCode] = {
    "too_late": grpc.StatusCode.DEADLINE_EXCEEDED,
    "evicted": grpc.StatusCode.DEADLINE_EXCEEDED,
    "overload": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unknown_task": grpc.StatusCode.NOT_FOUND,
    "bad_image": grpc.StatusCode.INVALID_ARGUMENT,
    "moved": grpc.StatusCode.UNAVAILABLE,
    "loading": grpc.StatusCode.UNAVAILABLE,
    "draining": grpc.StatusCode.UNAVAILABLE,
    "cancelled": grpc.StatusCode.CANCELLED,
    "failed": grpc.StatusCode.INTERNAL,
}
FIELDS: dict[RejectionReason, str] = {"unknown_task": "task", "bad_image": "inputs"}
"""Of refusals that are no matter of time; those name what set the deadline."""


def bad(field: str, text: str) -> RequestError:
    """INVALID_ARGUMENT that names the field."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, field, text)


def missing(field: str, text: str) -> RequestError:
    """NOT_FOUND that names the field."""
    return RequestError(grpc.StatusCode.NOT_FOUND, field, text)


def line(error: RequestError) -> str:
    """What a client reads: the field, if one is named, and the reason."""
    return f"{error.field}: {error}" if error.field else str(error)
