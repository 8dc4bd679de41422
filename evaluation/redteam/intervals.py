"""A measured value with a 95 % bootstrap interval over devices.

Whole devices are resampled, because the clips of one device share a speaker and an upload. The interval does not
cover the spread over students or over other people; more seeds and speakers would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 500

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


def over_devices(statistic: Callable[[Numbers], float], devices: int, seed: int) -> Measured:
    """``statistic`` of all ``devices``, and the range of its values in 95 % of the resamples.

    Args:
        statistic: from device numbers, some of them several times, to a value.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(devices, size=devices)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Measured(float(statistic(np.arange(devices))), float(low), float(high))
