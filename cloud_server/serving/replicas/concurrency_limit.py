"""How many images may be at the replicas at once: additive increase, multiplicative decrease, as TCP limits what it
sends (Chiu and Jain, 1989).

What passes a front costs processor time on its way, also what a replica refuses. Figures that replicas publish do not
hold that; when answers become late, too much is on its way.
"""

from __future__ import annotations

START, MOST = 16.0, 4096.0
"""Images for each replica: at the start, and at most."""
DECREASE = 0.8
"""What is left of the limit after a query that came too late."""


class ConcurrencyLimit:
    """Never below one image for each replica, so it always learns again. Times are those of one clock."""

    def __init__(self) -> None:
        self._each = START
        self._decreased = 0.0

    def images(self, replicas: int) -> float:
        """At so many replicas."""
        return self._each * max(1, replicas)

    def good(self, images: int, used: float, replicas: int) -> None:
        """So many images were answered well in time. used: how many were at the replicas then, these included: a limit
        that nobody reaches does not grow."""
        if used >= self.images(replicas) / 2:
            self._each = min(MOST, self._each + images / self.images(replicas))

    def bad(self, began: float, now: float) -> None:
        """A query that was sent at ``began`` came too late, or was refused for want of time. Those that were sent
        before the last decrease say nothing new."""
        if began >= self._decreased:
            self._each = max(1.0, self._each * DECREASE)
            self._decreased = now
