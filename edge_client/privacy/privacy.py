"""The arithmetic of a device's privacy spending: Gaussian mechanisms, composed exactly.

A Gaussian mechanism with noise multiplier z (noise standard deviation over L2 sensitivity) is mu-Gaussian
differentially private with mu = 1 / z. A sequence of them, each chosen after the answers of the earlier ones, is so
with the root of the summed squares of mu (Dong, Roth and Su 2019, "Gaussian differential privacy", corollary 3.3). The
step to (epsilon, delta) is exact too (their corollary 2.13; Balle and Wang 2018, theorem 8), so no accuracy is lost to
a loose bound. Everything here is about adding or removing one clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

MOST_EPSILON = 1e4
"""No useful guarantee is above this; the searches below end here."""
HALVINGS = 200
"""Of a bracket; stops at the precision of a float64 long before."""
FAR_TAIL = -30.0
"""Of the normal distribution: below, the series is exact to rounding, and soon ``erfc`` is 0."""


def delta_at(mu: float, epsilon: float) -> float:
    """The smallest delta for which a ``mu``-Gaussian private mechanism is (epsilon, delta) private.

    delta = Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu), in logarithms.
    """
    if mu == 0:
        return 0.0
    above = log_normal_below(mu / 2 - epsilon / mu)
    below = epsilon + log_normal_below(-mu / 2 - epsilon / mu)
    return math.exp(above) * -math.expm1(below - above) if below < above else 0.0


def log_normal_below(x: float) -> float:
    """log Phi(x) of the standard normal distribution, to rounding for every finite ``x``."""
    if x < FAR_TAIL:
        inverse = 1 / (x * x)  # Abramowitz and Stegun 26.2.12
        series = -inverse * (1 - 3 * inverse * (1 - 5 * inverse * (1 - 7 * inverse)))
        return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(series)
    tail = math.erfc(abs(x) / math.sqrt(2)) / 2
    return math.log1p(-tail) if x > 0 else math.log(tail)


def epsilon_at(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0, rounded up, for which ``mu``-Gaussian privacy is (epsilon, delta) privacy.

    Raises:
        ValueError: ``mu`` is negative or no number, or ``delta`` is no probability between 0 and 1.
    """
    _require_delta(delta)
    if not mu >= 0:
        raise ValueError(f"mu: {mu} is negative")
    if delta_at(mu, 0.0) <= delta:
        return 0.0
    if not mu < math.inf or delta_at(mu, MOST_EPSILON) > delta:
        return math.inf
    return _smallest(lambda epsilon: delta_at(mu, epsilon) <= delta, 0.0, MOST_EPSILON)


def sigma_for(epsilon: float, delta: float) -> float:
    """The smallest noise standard deviation, for L2 sensitivity 1, that is (epsilon, delta) private.

    3.7306 for (1, 1e-5), the analytic Gaussian mechanism of Balle and Wang (2018).

    Raises:
        ValueError: ``epsilon`` is not above 0 or absurdly large, or ``delta`` is no probability between 0 and 1.
    """
    _require_delta(delta)
    if not 0 < epsilon <= MOST_EPSILON:
        raise ValueError(f"epsilon: {epsilon} is not above 0 and up to {MOST_EPSILON:g}")
    high = 1.0
    while delta_at(1 / high, epsilon) > delta:
        high *= 2
    return _smallest(lambda sigma: delta_at(1 / sigma, epsilon) <= delta, 0.0, high)


def sigma_of_share(epsilon: float, delta: float, share: float) -> float:
    """The noise standard deviation, for L2 sensitivity 1, of one part of an (epsilon, delta) private release.

    Squared mu adds up, so parts whose shares sum to 1 cost exactly (epsilon, delta) together.

    Args:
        share: of the squared mu, above 0 and up to 1; 1 gives ``sigma_for``.
    """
    return sigma_for(epsilon, delta) / math.sqrt(share)


def composed(mus: Iterable[float]) -> float:
    """mu of several releases about the same clips together."""
    return math.hypot(*mus)


def spent(mus: Iterable[float], delta: float) -> float:
    """Epsilon at ``delta`` of all releases so far; 0 for none."""
    return epsilon_at(composed(mus), delta)


def _smallest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value in (low, high] from which on ``holds`` is true; errs upwards, the private side."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta: {delta} is no probability between 0 and 1")
