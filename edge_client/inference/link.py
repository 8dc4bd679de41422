"""A device's estimate of its link: how long a request of so many bytes will take, and whether to try at all.

Only real transfers count. Before each clip the connection sends a tiny echo request on the same stream: its answer
gives the round trip, and the extra time of the clip's answer is the clip's own transfer. So the two never mix, even if
all clips have the same size. There is no clock and no thread here: times are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

SHORTEST_TRANSFER = 0.0005  # s; below, only the scheduler is measured


@dataclass(frozen=True)
class LinkSettings:
    """Gains of the moving averages (round trip: RFC 6298's form, a little faster) and the pauses while down."""

    goodput_gain: float = 0.3
    round_trip_gain: float = 0.25
    deviation_gain: float = 0.25
    collapse: float = 2.0
    """A transfer this many times slower than the average is a changed link, not noise: the average jumps."""
    first_pause: float = 0.5  # s
    longest_pause: float = 8.0  # s


@dataclass(frozen=True)
class LinkEstimate:
    """A snapshot.

    Attributes:
        up: whether the last attempt to use the link worked.
        round_trip: seconds, moving average; None before the first measurement.
        deviation: seconds, moving mean deviation of the round trip.
        goodput: bytes of requests per second; None before the first measurement.
    """

    up: bool
    round_trip: float | None = None
    deviation: float = 0.0
    goodput: float | None = None

    def seconds(self, size: int) -> float | None:
        """How long a request of ``size`` bytes will take to be answered, cautiously; None if not measured yet."""
        if self.round_trip is None or self.goodput is None:
            return None
        return self.round_trip + 2 * self.deviation + size / self.goodput


class LinkEstimator:
    """Moving averages over transfers, and exponential back-off while the link is down."""

    def __init__(self, settings: LinkSettings = LinkSettings()) -> None:
        self._settings = settings
        self._up = False
        self._round_trip: float | None = None
        self._deviation = 0.0
        self._seconds_per_byte: float | None = None
        self._pause = settings.first_pause
        self._next_attempt = 0.0

    @property
    def estimate(self) -> LinkEstimate:
        """The present estimate."""
        goodput = None if self._seconds_per_byte is None else 1 / self._seconds_per_byte
        return LinkEstimate(self._up, self._round_trip, self._deviation, goodput)

    def echoed(self, seconds: float) -> None:
        """An echo request came back: the link is up, and this is its round trip."""
        self._up = True
        self._pause = self._settings.first_pause
        if self._round_trip is None:
            self._round_trip, self._deviation = seconds, seconds / 2
            return
        error = seconds - self._round_trip
        self._round_trip += self._settings.round_trip_gain * error
        self._deviation += self._settings.deviation_gain * (abs(error) - self._deviation)

    def transferred(self, size: int, seconds: float) -> None:
        """A request of ``size`` bytes took ``seconds`` more than its echo to be answered."""
        sample = max(seconds, SHORTEST_TRANSFER) / size
        known = self._seconds_per_byte
        if known is None or sample > self._settings.collapse * known:
            self._seconds_per_byte = sample
        else:
            self._seconds_per_byte = known + self._settings.goodput_gain * (sample - known)

    def unanswered(self, size: int, seconds: float) -> None:
        """``seconds`` after sending ``size`` bytes there is no answer yet: the link is at least this slow."""
        sample = (seconds - (self._round_trip or 0.0)) / size
        if self._seconds_per_byte is None or sample > self._seconds_per_byte:
            self._seconds_per_byte = max(sample, SHORTEST_TRANSFER / size)

    def failed(self, now: float, *, refused: bool = False) -> None:
        """An attempt failed: the link is down until an echo comes back.

        Args:
            now: seconds, of any steady clock.
            refused: the other side refused us, and only an operator can change that: the longest pause.
        """
        self._up = False
        if refused:
            self._pause = self._settings.longest_pause
        self._next_attempt = now + self._pause
        self._pause = min(2 * self._pause, self._settings.longest_pause)

    def attempt_in(self, now: float) -> float:
        """Seconds until the next attempt is due; 0 at once."""
        return max(0.0, self._next_attempt - now)
