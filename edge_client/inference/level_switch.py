"""Which route the next clip takes: the best compression level that the link carries in time, without rapid changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedstill.edge_client.inference.levels import CompressionLevel, choose, smallest
from fedstill.edge_client.inference.link import LinkEstimate
from fedstill.edge_client.inference.route import Route


@dataclass(frozen=True)
class Hysteresis:
    """When to leave a level. Margins are shares of the objective.

    A change needs ``dwell`` seconds since the last one, in both directions. If the present level becomes too slow
    before that, clips are answered locally for the rest of the time. So no trace of measurements can make more than one
    change per ``dwell``.
    """

    dwell: float = 5.0
    up_margin: float = 0.7
    down_margin: float = 0.9


class LevelSwitch:
    """Remembers the present level. Pure: estimates and times are arguments."""

    def __init__(self, levels: Sequence[CompressionLevel], hysteresis: Hysteresis = Hysteresis()) -> None:
        self._levels = tuple(levels)
        self._hysteresis = hysteresis
        self._current: int | None = None
        self._changed_at = 0.0

    def decide(self, estimate: LinkEstimate, objective_ms: float, now: float) -> Route:
        """Where the next clip goes.

        Args:
            estimate: of the link.
            objective_ms: what is left for the cloud's answer.
            now: seconds, of a steady clock.
        """
        if not estimate.up:
            return Route.local("link down")
        if estimate.seconds(0) is None:
            return self._measuring(now)
        if self._current is None:
            return self._switch(self._levels, estimate, objective_ms, now)
        present, rules = self._levels[self._current], self._hysteresis
        settled = now - self._changed_at >= rules.dwell
        if present.milliseconds(estimate) > objective_ms:
            lower = self._levels[self._current + 1 :]
            if settled or choose(lower, estimate, objective_ms, rules.down_margin) is None:
                return self._switch(lower, estimate, objective_ms, now)
            return Route.local("link slower than a moment ago")
        better = choose(self._levels[: self._current], estimate, objective_ms, rules.up_margin)
        if settled and better is not None:
            self._move_to(better, now)
        return Route.cloud(self._levels[self._current])

    def _measuring(self, now: float) -> Route:
        """The smallest level measures a new link; after a reconnection this counts as a change like any other."""
        if not self._levels:
            return Route.local("the cloud offers no compression level")
        probe = smallest(self._levels)
        if self._current is not None and self._levels[self._current] != probe:
            if now - self._changed_at < self._hysteresis.dwell:
                return Route.local("link not measured yet")
            self._move_to(probe, now)
        return Route.cloud(probe)

    def _switch(
        self, levels: Sequence[CompressionLevel], estimate: LinkEstimate, objective_ms: float, now: float
    ) -> Route:
        level = choose(levels, estimate, objective_ms, self._hysteresis.down_margin)
        if level is None:
            return Route.local("link too slow")
        self._move_to(level, now)
        return Route.cloud(level)

    def _move_to(self, level: CompressionLevel, now: float) -> None:
        self._current, self._changed_at = self._levels.index(level), now
