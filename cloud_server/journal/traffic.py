"""Bytes moved by each peer over each route: the proxy counts them, and the traffic ledger reads them.

Bodies count, and apart from them request lines, status lines and headers; TLS, TCP and IP do not. Only requests count
that the SuperLink accepted. The peer is the
one named in the node's signed headers, and the SuperLink checks the signature.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
    head_up: int = 0
    """What is before the bodies; older files have none."""
    head_down: int = 0

    @property
    def up(self) -> int:
        """All of them, from the node to the cloud."""
        return self.bytes_up + self.head_up

    @property
    def down(self) -> int:
        """All of them, from the cloud to the node."""
        return self.bytes_down + self.head_down


@dataclass(frozen=True)
class _File:
    traffic: tuple[RouteTraffic, ...] = ()


class TrafficCounters:
    """Running totals, kept in a file so that a restarted proxy goes on counting."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._totals = {
            (entry.peer, entry.route): entry for entry in (read_traffic(path) if path is not None else ())
        }
        self._changed = False

    def add(self, peer: str, route: str, up: int, down: int, head_up: int = 0, head_down: int = 0) -> None:
        """One request that was accepted."""
        before = self._totals.get((peer, route)) or RouteTraffic(peer, route, 0, 0, 0)
        self._totals[peer, route] = RouteTraffic(
            peer, route, before.requests + 1, before.bytes_up + up, before.bytes_down + down,
            before.head_up + head_up, before.head_down + head_down,
        )  # fmt: skip
        self._changed = True

    def totals(self) -> tuple[RouteTraffic, ...]:
        """By peer and route, sorted."""
        return tuple(self._totals[key] for key in sorted(self._totals))

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


def wire_bytes(path: Path) -> Callable[[Sequence[str]], tuple[int, int] | tuple[None, None]]:
    """All bytes (up, down) of the peers with some keys, by the counts in ``path``; (None, None) if it has none of them,
    or cannot be read."""
    try:
        counts = read_traffic(path)
    except (TrafficError, OSError):
        counts = ()

    totals: dict[str, tuple[int, int]] = {}
    for entry in counts:
        up, down = totals.get(entry.peer, (0, 0))
        totals[entry.peer] = up + entry.up, down + entry.down

    def of(keys: Sequence[str]) -> tuple[int, int] | tuple[None, None]:
        known = [totals[key] for key in set(keys) & totals.keys()]
        if not known:
            return None, None
        return sum(up for up, _ in known), sum(down for _, down in known)

    return of
