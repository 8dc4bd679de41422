"""Profiles: the thesis' numbers come back, dominated schedules go, files are checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.queries import made_profile

from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.profile import (
    Profile,
    Schedule,
    best_throughput,
    profile_to_plain,
    read_profile,
)
from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile
from fedstill.common.errors import DataError


@pytest.mark.parametrize(
    ("rate", "token_delta"),
    [
        (1, 8),
        (279, 8),
        (280, 4),
        (319, 4),
        (348, 2),
        (350, 0),
        (379, 0),
        (449, -5),
        (519, -10),
        (999, -15),
        (1001, -20),
    ],
)
def test_the_thesis_profile_is_table_3_4(rate: float, token_delta: int) -> None:
    assert best_throughput(thesis_profile().useful, rate - 1e-6).token_delta == token_delta


def test_a_batch_of_one_at_minus_15_gives_100_queries_per_second() -> None:
    assert thesis_profile().with_token_delta(-15).seconds(1) == pytest.approx(0.010)


def test_none_of_the_thesis_schedules_is_dominated() -> None:
    assert len(thesis_profile().useful) == 8


def test_dominated_schedules_are_not_planned_with() -> None:
    """ "lame" is as accurate as "fast" and slower; "big" is slower still, but fits larger batches."""
    base = made_profile()
    lame = Schedule("lame", -5, 0.01, 0.012, (0.8, 0.5), 8)
    big = Schedule("big", -6, 0.01, 0.012, (0.8, 0.5), 16)
    profile = Profile("p", "made", base.tasks, (*base.schedules, lame, big))
    assert [schedule.name for schedule in profile.useful] == ["fast", "big", "slow"]
    assert profile.with_token_delta(-5) == lame


def test_a_schedule_in_int8_is_taken_only_if_it_is_asked_for() -> None:
    base = made_profile()
    rows = [
        Schedule(name, delta, 0.01, 0.012, (0.8, 0.5), 8)
        for name, delta in (("0q", 0), ("0", 0), ("-15q", -15), ("m20x1-10x1q", -15), ("-20", -20))
    ]
    profile = Profile("p", "made", base.tasks, tuple(rows))
    assert [profile.with_token_delta(delta).name for delta in (0, -15, -20)] == ["0", "-15q", "-20"]
    assert [profile.with_token_delta(delta, int8=True).name for delta in (0, -15)] == ["0q", "-15q"]
    with pytest.raises(DataError, match=r"token delta -20 in int8 \(it has 0q, 0, "):
        profile.with_token_delta(-20, int8=True)
    assert make_policy("tome15q", profile).name == "tome15q"


def test_a_profile_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_to_plain(thesis_profile())))
    assert read_profile(path) == thesis_profile()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "not a profile of format 1"),
        ({"tasks": ["easy"]}, "schedule 'slow' has 2 accuracies, give one for each of the 1 tasks"),
        ({"schedules": []}, "needs at least one task and one schedule"),
        ({"sorce": "x"}, "sorce: unknown key, did you mean source?"),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**profile_to_plain(made_profile()), **change}))
    with pytest.raises(DataError) as refused:
        read_profile(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("accuracy", [1.2, 0.5], "accuracies must lie between 0 and 1"),
        ("per_query_seconds", 0.0, "per_query_seconds > 0"),
        ("fixed_seconds", -1.0, "fixed_seconds must be >= 0"),
        ("maximum_batch", 0, "maximum_batch must be at least 1"),
        ("name", "fast", "schedule 'fast' appears twice"),
    ],
)
def test_a_bad_schedule_is_named(tmp_path: Path, field: str, value: object, message: str) -> None:
    plain = profile_to_plain(made_profile())
    plain["schedules"][0][field] = value
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(DataError) as refused:
        read_profile(path)
    assert message in str(refused.value)
