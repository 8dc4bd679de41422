"""Which compression level a clip takes, and the link estimate behind it; no clock, no thread, no socket."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.edge_client.inference.level_switch import Hysteresis, LevelSwitch
from fedstill.edge_client.inference.levels import CompressionLevel, choose, compression_levels
from fedstill.edge_client.inference.link import LinkEstimate, LinkEstimator, LinkSettings
from fedstill.models.audiovisual.levels import Precision

LEVELS = compression_levels(512)


def link(kilobytes_per_second: float, round_trip: float = 0.02) -> LinkEstimate:
    return LinkEstimate(True, round_trip, 0.0, 1000 * kilobytes_per_second)


def chosen(estimate: LinkEstimate, objective_ms: float = 300.0) -> str:
    level = choose(LEVELS, estimate, objective_ms)
    return "local" if level is None else level.name


def test_there_are_twelve_levels_best_first() -> None:
    assert [level.name for level in LEVELS] == [
        f"{rate} {precision}" for rate in ("1", "1.5", "2", "3") for precision in ("fp32", "fp16", "int8")
    ]
    assert {level.name: level.size for level in LEVELS}["3 int8"] == 348


@pytest.mark.parametrize(
    ("kilobytes_per_second", "expected"),
    [
        (2500, "1 fp32"),
        (16, "1 fp32"),
        (8, "1 fp16"),
        (4, "1 int8"),
        (2, "2 int8"),
        (1.3, "3 int8"),
        (0.5, "local"),
    ],
)
def test_the_best_level_that_the_link_carries_in_time(kilobytes_per_second: float, expected: str) -> None:
    assert chosen(link(kilobytes_per_second)) == expected


def test_a_link_that_is_down_far_or_unknown() -> None:
    assert chosen(LinkEstimate(False, 0.01, 0.0, 1e6)) == "local"
    assert chosen(link(2500, round_trip=0.4)) == "local"
    assert choose((), link(2500), 300) is None


def test_a_measured_table_decides_the_order() -> None:
    table = {(1.0, Precision.INT8): 0.8, (1.0, Precision.FP32): 0.8, (2.0, Precision.FP32): 0.9}
    assert [level.name for level in compression_levels(512, accuracy=table)] == ["2 fp32", "1 int8", "1 fp32"]


def decisions(switch: LevelSwitch, events: list[tuple[float, LinkEstimate]]) -> list[str]:
    found = [switch.decide(estimate, 300.0, now) for now, estimate in events]
    return [one.level_name or one.path for one in found]


def test_up_needs_margin_and_time_down_is_at_once() -> None:
    fast, slow, just = link(2500), link(4.5), link(14.7)  # just: 4096 bytes in 299 ms
    assert decisions(
        LevelSwitch(LEVELS),
        [(0, slow), (1, fast), (4.9, fast), (5.0, fast), (6, just), (11, slow), (17, just), (23, fast)],
    ) == ["1 int8", "1 int8", "1 int8", "1 fp32", "1 fp32", "1 int8", "1 fp16", "1 fp32"]


def test_a_second_change_within_the_dwell_is_answered_locally_instead() -> None:
    events = [(0, link(2500)), (5, link(4.5)), (6, link(1.5)), (9.9, link(1.5)), (10, link(1.5))]
    assert decisions(LevelSwitch(LEVELS), events) == ["1 fp32", "1 int8", "local", "local", "3 int8"]


def test_going_local_and_back_is_no_change_of_level() -> None:
    down = LinkEstimate(False)
    events = [(0, link(4.5)), (1, down), (2, link(4.5)), (3, link(0.1)), (4, link(4.5))]
    assert decisions(LevelSwitch(LEVELS), events) == ["1 int8", "local", "1 int8", "local", "1 int8"]


def test_an_unmeasured_link_gets_the_smallest_level_unless_that_came_too_soon_after_a_change() -> None:
    new, fast = LinkEstimate(True), link(2500)
    events = [(0.0, new), (0.3, fast), (1.0, new), (6.0, new), (7.0, fast), (11.5, fast)]
    assert decisions(LevelSwitch(LEVELS), events) == [
        "3 int8",
        "1 fp32",
        "local",
        "3 int8",
        "3 int8",
        "1 fp32",
    ]
    assert LevelSwitch(()).decide(new, 300.0, 0.0).level is None


estimates = st.builds(
    LinkEstimate,
    st.booleans(),
    st.floats(0, 0.5),
    st.floats(0, 0.1),
    st.floats(100, 1e6),
)


@given(
    st.lists(st.tuples(st.floats(0.01, 3), estimates | st.just(LinkEstimate(True))), min_size=2, max_size=60)
)
def test_no_trace_makes_two_changes_within_the_dwell(steps: list[tuple[float, LinkEstimate]]) -> None:
    switch, now, taken = LevelSwitch(LEVELS, Hysteresis(dwell=5.0)), 0.0, []
    for pause, estimate in steps:
        now += pause
        level = switch.decide(estimate, 300.0, now).level
        if level is not None:
            seconds = estimate.seconds(level.size)
            assert seconds is None or seconds <= 0.3  # whatever is sent is expected in time
            taken.append((now, level))
    changes = [later for (_, before), (later, after) in itertools.pairwise(taken) if before != after]
    assert all(after - before >= 5.0 for before, after in itertools.pairwise(changes))


@given(estimates, st.floats(20, 1000), st.floats(0, 500))
def test_more_time_never_means_a_lower_level(estimate: LinkEstimate, objective: float, more: float) -> None:
    def rank(level: CompressionLevel | None) -> int:
        return len(LEVELS) if level is None else LEVELS.index(level)

    assert rank(choose(LEVELS, estimate, objective + more)) <= rank(choose(LEVELS, estimate, objective))


def test_the_estimate_converges_to_the_link() -> None:
    estimator = LinkEstimator()
    for size in itertools.islice(itertools.cycle((348, 1032, 4096)), 60):
        estimator.echoed(0.04)
        estimator.transferred(size, size / 8000)
    estimate = estimator.estimate
    assert estimate.up
    assert estimate.round_trip == pytest.approx(0.04)
    assert estimate.goodput == pytest.approx(8000, rel=0.01)
    assert estimate.deviation < 0.001
    assert estimate.seconds(4096) == pytest.approx(0.552, rel=0.01)


def test_a_collapse_is_believed_at_once_and_a_recovery_slowly() -> None:
    estimator = LinkEstimator()
    estimator.echoed(0.02)
    estimator.transferred(4096, 0.004)
    estimator.transferred(4096, 0.5)
    assert estimator.estimate.goodput == pytest.approx(8192)
    estimator.transferred(1032, 0.001)
    assert 8192 < (estimator.estimate.goodput or 0) < 16_384


def test_silence_bounds_the_goodput_but_never_raises_it() -> None:
    estimator = LinkEstimator()
    estimator.echoed(0.05)
    estimator.transferred(4096, 0.01)
    estimator.unanswered(4096, 0.30)
    assert estimator.estimate.goodput == pytest.approx(4096 / 0.25)
    estimator.unanswered(4096, 0.06)
    assert estimator.estimate.goodput == pytest.approx(4096 / 0.25)


def test_failures_back_off_exponentially_and_an_echo_resets_it() -> None:
    estimator = LinkEstimator(LinkSettings(first_pause=1, longest_pause=5))
    pauses = []
    for _ in range(5):
        estimator.failed(100.0)
        assert not estimator.estimate.up
        pauses.append(estimator.attempt_in(100.0))
    assert pauses == [1, 2, 4, 5, 5]
    assert estimator.attempt_in(103.0) == 2
    assert estimator.attempt_in(200.0) == 0
    estimator.echoed(0.01)
    assert estimator.estimate.up
    estimator.failed(300.0)
    assert estimator.attempt_in(300.0) == 1
    estimator.failed(300.0, refused=True)
    assert estimator.attempt_in(300.0) == 5
