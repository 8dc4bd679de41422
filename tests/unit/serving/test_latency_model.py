"""The latency model follows an engine that changes, and keeps a margin when times scatter."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.queries import made_profile

from fedstill.cloud_server.serving.scheduling.latency_model import CalibrationSettings, LatencyModel

SLOW, FAST = made_profile().schedules


def test_it_starts_as_the_profile_says() -> None:
    model = LatencyModel((SLOW, FAST))
    assert model.seconds(SLOW, 5) == pytest.approx(0.12)
    assert model.upper_seconds(SLOW, 5) == pytest.approx(0.12)


def test_a_true_profile_is_left_alone() -> None:
    model = LatencyModel((SLOW, FAST))
    for size in (1, 8, 3, 5) * 20:
        model.observe(SLOW, size, SLOW.seconds(size))
    assert model.line(SLOW) == pytest.approx((0.02, 0.02))
    assert model.scale == pytest.approx(1)
    assert model.margin == pytest.approx(1)


def test_a_slow_engine_slows_the_schedules_that_were_not_run_too() -> None:
    model = LatencyModel((SLOW, FAST))
    for size in (1, 8, 3, 5) * 10:
        model.observe(SLOW, size, 6 * SLOW.seconds(size))
    assert model.seconds(SLOW, 4) == pytest.approx(6 * SLOW.seconds(4), rel=0.02)
    assert model.seconds(FAST, 4) == pytest.approx(6 * FAST.seconds(4), rel=0.15)


def test_a_wrong_line_is_learned_for_its_schedule() -> None:
    """SLOW really takes 30 + 22 n ms, FAST is right; both are run."""
    model = LatencyModel((SLOW, FAST))
    for size in (1, 8, 3, 5) * 100:
        model.observe(SLOW, size, 0.03 + 0.022 * size)
        model.observe(FAST, size, FAST.seconds(size))
    for size in (1, 4, 8):
        assert model.seconds(SLOW, size) == pytest.approx(0.03 + 0.022 * size, rel=0.05)
        assert model.seconds(FAST, size) == pytest.approx(FAST.seconds(size), rel=0.05)


def test_batches_of_one_size_keep_a_usable_line() -> None:
    model = LatencyModel((SLOW,), CalibrationSettings(memory=0.5))
    for _ in range(200):
        model.observe(SLOW, 4, 0.2)
    fixed, per_query = model.line(SLOW)
    assert model.seconds(SLOW, 4) == pytest.approx(0.2, rel=1e-3)
    assert fixed >= 0
    assert per_query > 0


def test_the_upper_quantile_holds_for_scattered_times() -> None:
    """Log-normal times: about 95 % stay below the upper time."""
    generator = np.random.default_rng(3)
    model, below = LatencyModel((SLOW, FAST)), []
    for size in generator.integers(1, 9, 3000).tolist():
        seconds = SLOW.seconds(size) * float(np.exp(0.1 * generator.standard_normal()))
        below.append(seconds <= model.upper_seconds(SLOW, size))
        model.observe(SLOW, size, seconds)
    assert 0.88 < np.mean(below[500:]) < 0.99


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="cannot have taken"):
        LatencyModel((SLOW,)).observe(SLOW, 1, seconds)
