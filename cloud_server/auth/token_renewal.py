"""Tokens renew themselves: a device that shows one that ends soon gets another, over the connection that it proved."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from fedstill.cloud_server.auth.authority import Authority, prolonged_token
from fedstill.common.credentials import CredentialError
from fedstill.common.node_token import token_expiry

LOG = logging.getLogger(__name__)

RENEW_SECONDS = 90 * 86_400.0
"""Before its end; a device that is away for longer needs ``fedstill certs renew``."""


class TokenRenewal:
    """Of one authority's nodes. It writes the register, for ``fedstill certs list`` and its warnings.

    Args:
        authority: its secret signs.
        clock: seconds since 1970.
    """

    def __init__(self, authority: Authority, clock: Callable[[], float] = time.time) -> None:
        self._directory, self._clock = authority.directory, clock
        self._trouble = ""

    def due(self, name: str, token: str) -> bool:
        """Whether a token, which was checked, ends soon."""
        return token_expiry(token, name) <= self._clock() + RENEW_SECONDS

    def __call__(self, name: str) -> str:
        """A token for a node whose own is due; empty if there can be none, or is to be none. Reads and writes files."""
        try:
            made = prolonged_token(self._directory, name, RENEW_SECONDS)
        except CredentialError as error:
            self._says(str(error))
            return ""
        self._says("")
        if made:
            LOG.info("event=token_renewed node=%s", name)
        return made

    def _says(self, trouble: str) -> None:
        """Once."""
        if trouble and trouble != self._trouble:
            LOG.warning("event=token_not_renewed reason=%s", json.dumps(trouble))
        self._trouble = trouble
