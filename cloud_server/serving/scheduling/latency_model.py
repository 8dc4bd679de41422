"""How long a batch takes on the engine at present: the profile's affine times, corrected by observations.

Two things change. All schedules slow down together when another process uses the machine: one shared scale follows that
within a few batches, also for schedules that were not run since. And a schedule's own line may be wrong: it is fitted
by exponentially weighted least squares to times divided by the scale, starting from the profile as prior observations.
Deadlines are checked against an upper quantile, from the spread of recent relative errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.scheduling.profile import Schedule

SMALLEST_SLOPE = 1e-9  # seconds per query
JUMP = 0.2  # log error at which an observation counts half for its schedule's own line
MOST_ERROR = math.log(8)  # log error; a longer batch met a pause of the machine, not a slower engine


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """scale_weight: of the newest batch in the shared scale. memory: how much an older observation counts per newer
    one. prior_weight: observations that the profile is worth. quantile: of the time that deadlines are checked with, so
    that one answer in a hundred may be late."""

    scale_weight: float = 0.2
    memory: float = 0.98
    prior_weight: float = 10.0
    quantile: float = 0.99

    def __post_init__(self) -> None:
        if not (0 < self.scale_weight <= 1 and 0 < self.memory < 1 and self.prior_weight > 0):
            raise ValueError("scale_weight and memory must lie between 0 and 1, prior_weight above 0")
        if not 0.5 <= self.quantile < 1:
            raise ValueError("quantile must be at least 0.5 and below 1")


class ScheduleFit:
    """The line of one schedule: weighted least squares on (batch size, seconds), forgetting the old."""

    def __init__(self, schedule: Schedule, settings: CalibrationSettings) -> None:
        self._memory = settings.memory
        self.fixed, self.per_query = self.profiled = schedule.fixed_seconds, schedule.per_query_seconds
        # The profile as observations at both ends of the line. Sums are kept relative to the square
        # of the time, since errors are relative: small batches are known as well as large ones.
        self._normal: npt.NDArray[np.float64] = np.zeros((2, 2))
        self._right: npt.NDArray[np.float64] = np.zeros(2)
        for size in (1, schedule.maximum_batch) if schedule.maximum_batch > 1 else (1, 2):
            self._add(size, schedule.seconds(size), settings.prior_weight / 2)

    def observe(self, size: int, seconds: float, weight: float = 1.0) -> None:
        """One batch of `size` took `seconds` (already divided by the shared scale)."""
        kept = 1 - weight * (1 - self._memory)
        self._normal *= kept
        self._right *= kept
        self._add(size, seconds, weight)
        (a, b), (_, d) = self._normal.tolist()
        right_fixed, right_slope = self._right.tolist()
        determinant = a * d - b * b
        if determinant <= 1e-9 * a * d:
            # All observed batches had one size: keep the slope's share, move the line as a whole.
            fixed, slope = self.fixed, self.per_query
            factor = (right_fixed * fixed + right_slope * slope) / (
                a * fixed**2 + 2 * b * fixed * slope + d * slope**2
            )
            self.fixed, self.per_query = fixed * factor, slope * factor
            return
        fixed = (d * right_fixed - b * right_slope) / determinant
        slope = (a * right_slope - b * right_fixed) / determinant
        if fixed < 0:  # under fixed >= 0 the best line starts at zero
            fixed, slope = 0.0, right_slope / d
        elif slope <= 0:
            fixed, slope = right_fixed / a, SMALLEST_SLOPE
        self.fixed, self.per_query = fixed, slope

    def _add(self, size: int, seconds: float, weight: float) -> None:
        row = np.array((1.0, float(size))) / seconds
        self._normal += weight * np.outer(row, row)
        self._right += weight * row


class LatencyModel:
    """Predicted seconds per schedule and batch size, learning from every completed batch."""

    def __init__(self, schedules: tuple[Schedule, ...], settings: CalibrationSettings | None = None) -> None:
        self._settings = settings or CalibrationSettings()
        self._fits = {schedule.name: ScheduleFit(schedule, self._settings) for schedule in schedules}
        self._score = NormalDist().inv_cdf(self._settings.quantile)
        self.scale = 1.0
        self.relative_error = 0.0
        """Root mean square of recent relative errors of `seconds`."""

    def seconds(self, schedule: Schedule, size: int) -> float:
        """The time to expect."""
        fit = self._fits[schedule.name]
        return self.scale * (fit.fixed + fit.per_query * size)

    def upper_seconds(self, schedule: Schedule, size: int) -> float:
        """A time that the batch should stay below with the probability of the settings."""
        return self.seconds(schedule, size) * self.margin

    @property
    def margin(self) -> float:
        """Upper quantile over expectation."""
        return math.exp(self._score * self.relative_error)

    def line(self, schedule: Schedule) -> tuple[float, float]:
        """(fixed, per query) seconds of the line that `seconds` follows now."""
        fit = self._fits[schedule.name]
        return self.scale * fit.fixed, self.scale * fit.per_query

    def observe(self, schedule: Schedule, size: int, seconds: float) -> None:
        """A batch of `size` at `schedule` took `seconds`. Raises ValueError for an impossible time."""
        if not (math.isfinite(seconds) and seconds > 0 and size >= 1):
            raise ValueError(f"a batch of {size} cannot have taken {seconds} s")
        fit, weight = self._fits[schedule.name], self._settings.scale_weight
        expected = self.seconds(schedule, size)
        error = min(max(math.log(seconds / expected), -MOST_ERROR), MOST_ERROR)
        self.relative_error = math.sqrt((1 - weight) * self.relative_error**2 + weight * error**2)
        self.scale *= math.exp(weight * error)
        # A jump is attributed to the engine as a whole, so that it reaches the schedules that were not run.
        # The line sees no more of it than the scale: a time of nearly nothing would outweigh all others there.
        fit.observe(size, expected * math.exp(error) / self.scale, 1 / (1 + (error / JUMP) ** 2))

    def adopt(self, other: LatencyModel) -> None:
        """Continue from what `other` has learnt about the same engine: scale, spread, and the lines of the schedules of
        which both profiles say the same."""
        self.scale, self.relative_error = other.scale, other.relative_error
        self._fits |= {
            name: fit
            for name, fit in other._fits.items()
            if name in self._fits and fit.profiled == self._fits[name].profiled
        }
