"""Bytes moved by each peer over each route: the proxy counts them, and the traffic ledger reads them.

Only bodies count, not headers or TLS records, and only those of requests that the SuperLink accepted. The peer is the
one named in the node's signed headers, and the SuperLink checks the signature.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import PlainError, from_plain, to_plain


class TrafficError(ValueError):
    """A file of counts that cannot be read; one line."""


@dataclass(frozen=True)
class RouteTraffic:
    """Bytes that one peer moved over one route since the file was begun."""

    peer: str
    """``SHA256:...`` of the node's key (as in ``nodes.json``), or its address if nodes have no keys."""
    route: str
    """Last part of the path: ``pull-object``, ``push-object``, ..."""
    requests: int
    bytes_up: int
    """From the node to the cloud."""
    bytes_down: int


@dataclass(frozen=True)
class _File:
    traffic: tuple[RouteTraffic, ...] = ()


class TrafficCounters:
    """Running totals, kept in a file so that a restarted proxy goes on counting."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._requests: Counter[tuple[str, str]] = Counter()
        self._up: Counter[tuple[str, str]] = Counter()
        self._down: Counter[tuple[str, str]] = Counter()
        self._changed = False
        for entry in read_traffic(path) if path is not None else ():
            key = (entry.peer, entry.route)
            self._requests[key], self._up[key], self._down[key] = (
                entry.requests,
                entry.bytes_up,
                entry.bytes_down,
            )

    def add(self, peer: str, route: str, up: int, down: int) -> None:
        """One request that was accepted."""
        key = (peer, route)
        self._requests[key] += 1
        self._up[key] += up
        self._down[key] += down
        self._changed = True

    def totals(self) -> tuple[RouteTraffic, ...]:
        """By peer and route, sorted."""
        return tuple(
            RouteTraffic(*key, self._requests[key], self._up[key], self._down[key])
            for key in sorted(self._requests)
        )

    def save(self) -> None:
        """Write the file if anything changed; readers see the old or the new one."""
        if self._path is None or not self._changed:
            return
        replace_text(self._path, json.dumps(to_plain(_File(self.totals()))))
        self._changed = False


def read_traffic(path: Path) -> tuple[RouteTraffic, ...]:
    """The totals that a proxy keeps in ``path``; none as long as there is no such file.

    Raises:
        TrafficError: the file is damaged.
    """
    try:
        return from_plain(_File, json.loads(path.read_bytes())).traffic
    except FileNotFoundError:
        return ()
    except (PlainError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrafficError(f"{path}: damaged ({error}); move it away to count from zero") from error
