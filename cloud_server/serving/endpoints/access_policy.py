"""Who may call what: health is for everybody, queries need a token, tasks are changed by operators."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from fedstill.cloud_server.auth.authenticator import Authorise, token_of
from fedstill.cloud_server.auth.tokens import TokenError
from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.rate_limits import RateLimits

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AccessPolicy:
    """Access policy. authorise: None allows all callers everything (``--insecure``). operators: names of tokens
    that may change tasks. limits: of the queries of each token."""

    authorise: Authorise | None
    operators: frozenset[str] = frozenset()
    limits: RateLimits = field(default_factory=RateLimits)

    def check(self, authorization: Sequence[str], peer: str, operators: bool) -> str:
        """The node of the caller's token; empty if none is needed. Raises RequestError for a caller who may not.

        authorization: all values of the call's header. peer: for the log. operators: whether only they may.
        """
        if self.authorise is None:
            return ""
        try:
            name = self.authorise(token_of(authorization))
        except TokenError as error:
            LOG.warning("event=caller_refused peer=%s reason=%s", peer, error)
            raise RequestError(grpc.StatusCode.UNAUTHENTICATED, "authorization", str(error)) from None
        if operators and name not in self.operators:
            text = f"{name} is not an operator of this server"
            raise RequestError(grpc.StatusCode.PERMISSION_DENIED, "authorization", text)
        return name
