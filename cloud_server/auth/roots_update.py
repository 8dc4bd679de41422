"""Devices follow their authority: one that trusts other roots than it is to trust gets those, and what it says that it
trusts is noted in the register, so that an operator knows when a roll-over can be finished."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fedstill.cloud_server.auth.authority import Authority
from fedstill.cloud_server.auth.authority_files import VOUCHES_FILE
from fedstill.cloud_server.auth.register import IssuedNode, list_nodes, locked, write_register
from fedstill.common.credentials import CA_FILE, CredentialError, parse
from fedstill.common.trusted_roots import fingerprints

LOG = logging.getLogger(__name__)

FRESH_SECONDS = 5.0
"""How long after a step of a roll-over a device may still get the roots of before."""


class RootsUpdate:
    """Of one authority's nodes.

    Args:
        authority: whose folder is read again every few seconds.
        clock: seconds, which only grow.
    """

    def __init__(self, authority: Authority, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._clock = authority.directory, clock
        self._read_at = float("-inf")
        self._roots: tuple[str, ...] = ()
        self._bundle = b""
        self._noted: dict[str, tuple[str, ...]] = {}
        self._trouble = ""

    def bundle_for(self, trusted: tuple[str, ...]) -> bytes:
        """The roots to trust, and what vouches for them, in PEM; empty for a device that trusts just these.

        Args:
            trusted: fingerprints, as the device said; none: it is older, and does not take any.
        """
        if not trusted:
            return b""
        if self._clock() - self._read_at > FRESH_SECONDS:
            self._read()
        return self._bundle if set(trusted) != set(self._roots) else b""

    def _read(self) -> None:
        self._read_at = self._clock()
        try:
            pem = parse(self._directory / CA_FILE, lambda content: (fingerprints(content), content))
            vouches = _content(self._directory / VOUCHES_FILE)
        except CredentialError as error:  # what was read last still holds
            self._says(str(error))
            return
        self._roots, self._bundle = pem[0], pem[1] + vouches

    def news(self, name: str, trusted: tuple[str, ...]) -> bool:
        """Whether a device says something that was not noted yet."""
        return bool(trusted) and self._noted.get(name) != trusted

    def note(self, said: Mapping[str, tuple[str, ...]]) -> bool:
        """Enter it in the register, all at once, if it can be written now. Reads and writes files.

        Args:
            said: by each of some devices, newest.
        """
        try:
            if any(_changes(node, said) for node in list_nodes(self._directory)):
                with locked(self._directory, wait=False):
                    nodes = list_nodes(self._directory)
                    changed = [node for node in nodes if _changes(node, said)]
                    rows = (replace(one, roots=said[one.name]) if one in changed else one for one in nodes)
                    write_register(self._directory, tuple(rows))
                self._trouble = ""
                for node in changed:
                    LOG.info("event=roots_noted node=%s roots=%d", node.name, len(said[node.name]))
        except (CredentialError, OSError) as error:
            self._says(str(error))
            return False
        self._noted.update(said)
        return True

    def _says(self, trouble: str) -> None:
        """Once."""
        if trouble != self._trouble:
            LOG.warning("event=roots_not_noted reason=%s", json.dumps(trouble))
        self._trouble = trouble


def _changes(node: IssuedNode, said: Mapping[str, tuple[str, ...]]) -> bool:
    return not node.revoked and node.roots != said.get(node.name, node.roots)


def _content(path: Path) -> bytes:
    """Of a file that need not be there. Raises CredentialError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CredentialError(f"{path}: {error.strerror}") from error
