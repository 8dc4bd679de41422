"""How long a query is on its way to a replica and back, beside what the replica takes: a mean and its deviation, as TCP
estimates round trips (Jacobson, 1988). The front tells the replica, whose plan then ends that much earlier."""

from __future__ import annotations

GAIN, DEVIATION_GAIN = 1 / 8, 1 / 4
DEVIATIONS = 2.0
LARGEST_SHARE = 0.5
"""Of the time until a deadline that is taken off: however wrong the estimate is, replicas still answer, and every
answer mends it."""


class WayTime:
    """In seconds."""

    def __init__(self) -> None:
        self._mean = self._deviation = 0.0
        self._heard = False

    def hear(self, seconds: float) -> None:
        """Of one query's way, there and back."""
        seconds = max(0.0, seconds)
        if not self._heard:
            self._heard, self._mean, self._deviation = True, seconds, seconds / 2
            return
        error = seconds - self._mean
        self._mean += GAIN * error
        self._deviation += DEVIATION_GAIN * (abs(error) - self._deviation)

    def allowance(self, left: float) -> float:
        """What to take off the time that is left until a deadline."""
        return min(self._mean + DEVIATIONS * self._deviation, LARGEST_SHARE * max(0.0, left))
