"""Authentication of gRPC calls: the bearer token of a call, and the device it belongs to by the present register."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence

import grpc
from google.protobuf.message import Message

from fedstill.cloud_server.auth.authority import Authority, refreshed
from fedstill.cloud_server.auth.tokens import TokenError, verify
from fedstill.common.credentials import CredentialError

LOG = logging.getLogger(__name__)

FRESH_SECONDS = 5.0
"""How long a revoked node's token may still work."""

Authorise = Callable[[str], str]
"""Token -> the device's name; raises TokenError. Called again for every request, because streams outlive tokens."""
Context = grpc.aio.ServicerContext[Message, Message]


class Authenticator:
    """Token -> device name, by the present register."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._read_at = time.monotonic()

    def __call__(self, token: str) -> str:
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            self._read_at = time.monotonic()
            try:
                self._authority = refreshed(self._authority)
            except CredentialError as error:  # a disk or a backup in between; what was read last still holds
                LOG.warning("event=register_not_read reason=%s", json.dumps(str(error)))
        return verify(self._authority.secret, token, time.time(), self._authority.revoked_names)


def bearer_token(context: Context) -> str:
    """The token that a call carries. Raises TokenError if there is none, or more than one."""
    return token_of(
        [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    )


def token_of(authorization: Sequence[str]) -> str:
    """The token in the values of ``authorization``. Raises TokenError if there is none, or more than one."""
    scheme, _, token = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        raise TokenError("a bearer token is needed")
    return token
