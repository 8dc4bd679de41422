"""The refusal of a request by a gRPC service: one type for all services."""

from __future__ import annotations

import grpc


class RequestError(Exception):
    """Why a request is refused: a google.rpc code, the field (or nothing) and one line."""

    def __init__(self, code: grpc.StatusCode, field: str, text: str, retry_milliseconds: int = 0) -> None:
        super().__init__(text)
        self.code, self.field, self.retry_milliseconds = code, field, retry_milliseconds
