"""A measured profile for tasks that come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, Variant
from fedstill.cloud_server.serving.server.live_profile import (
    LEAST_ACCURACY,
    ProfileKey,
    check_trunk,
    fit_profile,
)
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.common.errors import ConfigError, DataError
from fedstill.models.vit.schedules import constant_schedule

LAYERS = 4
SCHEDULES = {one.name: one for one in (constant_schedule(delta, LAYERS) for delta in (0, -5, 2))}
PROFILE = Profile(
    "made",
    "by hand",
    ("cats", "dogs"),
    (
        Schedule("0", 0, 0.002, 0.010, (0.8, 0.6), 64),
        Schedule("-5", -5, 0.002, 0.005, (0.4, 0.6), 64),
        Schedule("+2", 2, 0.002, 0.011, (0.9, 0.0), 64),
        Schedule("-9", -9, 0.002, 0.003, (0.3, 0.3), 64),  # the engine has no such schedule
    ),
    (Variant(Schedule("small", 0, 0.001, 0.001, (0.5, 0.5)), 0.2),),
)
COLUMNS = {"cats": "c1", "dogs": "d1"}


def version(
    name: str, parameters: str, prompts: tuple[int, ...] = (2,), accuracy: float = 0.5
) -> TaskVersion:
    return TaskVersion(name, 1, ("a", "b"), "t", parameters, prompts, 600.0, 1.0, accuracy, "now", True)


def fitted(*tasks: TaskVersion) -> Profile:
    return fit_profile(PROFILE, COLUMNS, {one.name: one for one in tasks}, SCHEDULES, 16)


def accuracies(profile: Profile, task: str) -> dict[str, float]:
    column = profile.task_index(task)
    return {one.name: one.accuracy[column] for one in profile.schedules}


def test_what_was_measured_stays_as_it_is() -> None:
    found = fitted(version("dogs", "d1"), version("cats", "c1"))
    assert found.tasks == ("dogs", "cats")
    assert accuracies(found, "cats") == {"0": 0.8, "-5": 0.4, "+2": 0.9}
    assert accuracies(found, "dogs") == {"0": 0.6, "-5": 0.6, "+2": LEAST_ACCURACY}
    assert {one.maximum_batch for one in found.schedules} == {16}
    assert found.variants == ()


def test_a_new_task_loses_by_fewer_tokens_what_the_others_lose() -> None:
    found = fitted(version("cats", "c1"), version("birds", "b1", accuracy=0.5))
    # -5 keeps 0.4 / 0.8 of cats and 0.6 / 0.6 of dogs: 0.75 on average
    assert accuracies(found, "birds") == pytest.approx({"0": 0.5, "-5": 0.375, "+2": 0.5 * 0.5625})


def test_a_new_version_is_a_new_task_and_none_is_righter_than_always() -> None:
    assert accuracies(fitted(version("cats", "c2", accuracy=0.6)), "cats")["0"] == pytest.approx(0.6)
    steep = replace(
        PROFILE, schedules=(PROFILE.schedules[0], replace(PROFILE.schedules[1], accuracy=(1.0, 1.0)))
    )
    new = {"birds": version("birds", "b1", accuracy=0.9)}
    assert accuracies(fit_profile(steep, COLUMNS, new, SCHEDULES, 16), "birds")["-5"] == 1.0


def test_without_an_accuracy_of_its_own_a_task_is_like_the_others() -> None:
    found = fitted(version("birds", "b1", accuracy=0.0))
    assert accuracies(found, "birds")["0"] == pytest.approx(0.7)


def test_a_schedule_that_a_task_has_no_prompts_for_is_left_out() -> None:
    found = fitted(version("cats", "c1"), version("birds", "b1", prompts=()))
    assert [one.name for one in found.schedules] == ["0", "-5"]


def test_nothing_left_is_said() -> None:
    with pytest.raises(DataError, match="no task"):
        fitted()
    with pytest.raises(DataError, match="none of its schedules suits"):
        fit_profile(
            replace(PROFILE, schedules=PROFILE.schedules[2:]),
            COLUMNS,
            {"birds": version("birds", "b1", prompts=())},
            SCHEDULES,
            16,
        )


def test_a_profile_of_other_weights_is_refused() -> None:
    check_trunk(PROFILE, "a" * 64)  # nobody noted which it was
    check_trunk(replace(PROFILE, trunk="a" * 64), "a" * 64)
    with pytest.raises(ConfigError, match="measured with other weights"):
        check_trunk(replace(PROFILE, trunk="b" * 64), "a" * 64)


def test_a_profile_is_measured_again_when_anything_changes() -> None:
    key = ProfileKey("t", (("cats", "c1"),), ("0", "-5"), (1, 2), (200, 0), "cpu")
    others = [
        replace(key, trunk="u"),
        replace(key, tasks=(("cats", "c2"),)),
        replace(key, tasks=(("cats", "c1"), ("dogs", "d1"))),
        replace(key, schedules=("0",)),
        replace(key, batches=(1, 2, 4)),
        replace(key, images=(100, 0)),
        replace(key, engine="cuda"),
    ]
    assert len({one.digest for one in (key, *others)}) == 1 + len(others)
    assert replace(key).digest == key.digest
