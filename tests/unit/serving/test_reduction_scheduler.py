"""Models in a profile: the choice per reduction, the throughput rule under load, and joint planning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.queries import made_profile, made_query
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.policies.prodigy import (
    ProdigyPolicy,
    best_models,
    most_reduced,
    warmed_profile,
)
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, profile_to_plain, read_profile
from fedstill.cloud_server.warmup.ensembler import (
    EnsembleSettings,
    affordable_models,
    best_single,
    choose_recipe,
    printed_recipe,
    ranking,
    softmax_recipe,
)
from fedstill.cloud_server.warmup.warmed_models import single
from fedstill.common.errors import DataError


def made_warmed() -> Profile:
    """The plain model falls from 0.9 to 0.2; r20 and r100 hold 0.7 and 0.5 where it does not."""
    plain = {
        0: Schedule("0", 0, 0.0, 0.02, (0.9,), 8),
        20: Schedule("-20", -20, 0.0, 0.01, (0.4,), 8),
        100: Schedule("-100", -100, 0.0, 0.005, (0.2,), 8),
    }
    warmed = {"r20": {0: 0.8, 20: 0.7, 100: 0.3}, "r100": {0: 0.1, 20: 0.3, 100: 0.5}}
    return warmed_profile("made", "made up", "pets", plain, warmed)


def test_a_warmed_profile_names_models_and_is_read_back(tmp_path: Path) -> None:
    profile = made_warmed()
    assert [schedule.name for schedule in profile.schedules][:4] == ["0", "-20", "-100", "0@r20"]
    assert {schedule.model for schedule in profile.schedules} == {"", "r20", "r100"}
    assert profile.with_token_delta(0).model == ""  # Clipper and the fixed policies run the plain model
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_to_plain(profile)))
    assert read_profile(path) == profile


def test_the_best_model_serves_each_reduction() -> None:
    assert [schedule.name for schedule in best_models(made_warmed()).schedules] == [
        "0",
        "-20@r20",
        "-100@r100",
    ]


def test_useful_schedules_are_the_best_models_so_that_planning_is_joint() -> None:
    assert {schedule.name for schedule in made_warmed().useful} == {"0", "-20@r20", "-100@r100"}


def test_the_throughput_rule_follows_the_load_of_the_last_batch() -> None:
    policy = ProdigyPolicy(made_warmed())
    served = []
    for count in (1, 4, 15, 30, 1):
        now = 10.0 * len(served)
        policy.dispatch(now)  # from here on the engine runs a batch of 0.1 s
        for identifier in range(count):
            policy.arrive(made_query(identifier, now, 5.0), now + 0.05)
        batch = policy.dispatch(now + 0.1).batch
        assert batch is not None
        assert policy.load == pytest.approx(count / 0.1)
        served.append(batch.schedule.name)
        while policy.queued():
            policy.dispatch(now + 0.2)
    assert served == ["0", "0", "-100@r100", "-100@r100", "0"]
    policy.load = 99.0
    policy.arrive(made_query(0, 50.0, 5.0), 50.0)
    assert policy.allocate(policy._batches, 50.0)[0].name == "-20@r20"


def test_where_the_rule_would_be_late_the_fastest_runs() -> None:
    policy = ProdigyPolicy(made_warmed())
    policy.arrive(made_query(0, 0.0, 0.015), 0.0)
    assert policy.dispatch(0.0).batch.schedule.name == "-100@r100"


def test_maxprune_is_the_model_of_the_largest_reduction_alone() -> None:
    assert {schedule.model for schedule in most_reduced(made_warmed()).schedules} == {"r100"}
    with pytest.raises(DataError, match="no warmed models: make one with: fedstill warmup"):
        make_policy("maxprune", made_profile())


@pytest.mark.parametrize(("name", "models"), [("vanilla", {""}), ("maxprune", {"r100"}), ("clipper", {""})])
def test_a_system_runs_only_its_models(name: str, models: set[str]) -> None:
    policy = make_policy(name, made_warmed())
    ran = set()
    for turn in range(6):
        for identifier in range(4 * turn + 1):
            policy.arrive(made_query(100 * turn + identifier, turn, 1.0, 0.5), turn)
        while (decision := policy.dispatch(turn + 0.5)).batch is not None:
            ran.add(decision.batch.schedule.model)
    assert ran == models


def test_fedstill_chooses_model_and_reduction_together() -> None:
    """A short deadline leaves no time for the plain model: the model that is best at the reduction that fits."""
    policy = make_policy("fedstill", made_warmed())
    for identifier in range(8):
        policy.arrive(made_query(identifier, 0.0, 0.1), 0.0)
    assert policy.dispatch(0.0).batch.schedule.name == "-20@r20"


def test_algorithm_5_as_printed_is_nearly_uniform() -> None:
    weights = printed_recipe({10: 0.6145, 20: 0.7719}).weights
    assert weights == pytest.approx({"10": 0.4432, "20": 0.5568}, abs=1e-4)
    assert printed_recipe({10: 0.0, 20: 0.0}).weights == {"10": 0.5, "20": 0.5}
    assert printed_recipe({10: 1.0, 20: 1.0, 30: 5e-324}).weights == {"10": 0.5, "20": 0.5}


def test_a_temperature_sharpens_and_neighbours_are_few() -> None:
    accuracies = {10: 0.61, 20: 0.77, 30: 0.70, 100: 0.1}
    sharp, flat = (softmax_recipe(accuracies, temperature, 2).weights for temperature in (0.02, 10.0))
    assert set(sharp) == set(flat) == {"20", "30"}
    assert sharp["20"] > 0.95
    assert flat["20"] == pytest.approx(0.5, abs=0.01)
    assert softmax_recipe(accuracies, 0.001, 2) == single(20)


@given(
    accuracies=st.dictionaries(st.integers(0, 100), st.floats(0, 1), min_size=1, max_size=6),
    temperature=st.floats(0.01, 10),
    most=st.integers(1, 6),
)
def test_weights_are_positive_and_sum_to_one(accuracies, temperature, most) -> None:
    for recipe in (printed_recipe(accuracies), softmax_recipe(accuracies, temperature, most)):
        assert sum(recipe.weights.values()) == pytest.approx(1)
    assert len(softmax_recipe(accuracies, temperature, most).weights) <= most


def test_a_soup_is_accepted_only_if_better_on_the_other_half() -> None:
    right = {10: "1100110011", 20: "1100110010"}
    settings = EnsembleSettings(temperatures=(1.0,))
    assert choose_recipe(right, lambda _: "1111111111", settings).weights.keys() == {"10", "20"}
    assert choose_recipe(right, lambda _: "1010101010", settings) == single(
        10
    )  # better where it was chosen only
    assert choose_recipe(right, lambda _: right[10], settings) == single(10)  # equal is not better
    assert choose_recipe({10: "11"}, pytest.fail, settings) == single(10)


def test_equals_are_served_by_the_model_of_less_reduction() -> None:
    assert best_single({30: "110", 20: "101"}) == single(20)
    assert ranking({30: "110", 20: "101", 10: "111"}) == (single(10), single(20), single(30))


def test_models_to_keep_are_those_that_add_most_per_byte() -> None:
    accuracies = {0: {0: 0.9, 20: 0.3}, 20: {0: 0.8, 20: 0.7}, 25: {0: 0.79, 20: 0.7}}
    sizes = dict.fromkeys(accuracies, 10)
    assert affordable_models(accuracies, sizes, 9) == ()
    assert affordable_models(accuracies, sizes, 10) == (20,)
    assert affordable_models(accuracies, sizes, 100) == (20, 0)  # 25 adds nothing


def test_a_profile_without_a_model_says_so() -> None:
    with pytest.raises(DataError, match="no schedules of model 'r7'"):
        made_warmed().of_model("r7")
