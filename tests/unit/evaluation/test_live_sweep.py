"""The interleaved comparison of live servers: order, the best fixed policy, one result out of many."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.queries import made_profile

from fedstill.cloud_server.serving.scheduling.profile import Schedule
from fedstill.common.errors import DataError
from fedstill.evaluation.serving import live_sweep
from fedstill.evaluation.serving.live_loadtest import LiveSettings
from fedstill.evaluation.serving.live_sweep import Sweep, best_fixed, merged, rotated
from fedstill.evaluation.serving.served_process import ServedProcess, ServerOptions
from fedstill.evaluation.serving.summary import Mean, paired_ratio
from fedstill.evaluation.serving.virtual import LoadTest, run_virtual

TEST = LoadTest(traces=("synthetic",), policies=("pets", "tome10"), seeds=2, seconds=10, rate=40)


def test_every_policy_is_first_in_turn() -> None:
    orders = [rotated(["a", "b", "c"], seed) for seed in range(4)]
    assert [order[0] for order in orders] == ["a", "b", "c", "a"]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_the_best_fixed_policy_is_chosen_by_what_it_earns() -> None:
    profile = made_profile()
    slow = Schedule("-5", -5, 0.02, 0.02, (0.9, 0.9), 8)
    useless = Schedule("-20", -20, 0.001, 0.001, (0.0, 0.0), 8)
    profile = replace(profile, schedules=(*profile.schedules, slow, useless))
    assert best_fixed(profile, replace(TEST, rate=5.0)) == "tome5"  # time for everybody: accuracy counts
    assert best_fixed(profile, replace(TEST, rate=80.0)) == "tome10"  # more than the slow one can serve
    with pytest.raises(DataError, match="none of the schedules"):
        best_fixed(replace(profile, schedules=profile.schedules[:1]), TEST)


def test_results_of_single_servers_become_one_load_test() -> None:
    profile = made_profile()
    parts = [
        run_virtual(replace(TEST, policies=(policy,)), profile, None, "") for policy in ("pets", "tome10")
    ]
    sweep = Sweep(TEST, LiveSettings(), ServerOptions(Path()), (), "here", "typed")
    whole = merged(parts, TEST, sweep)
    together = run_virtual(TEST, profile, None, "typed")
    assert sorted(whole.runs, key=str) == sorted(together.runs, key=str)
    assert whole.references == together.references
    assert whole.policies() == ["pets", "tome10"]
    assert whole.command == "typed"


def test_a_sweep_goes_on_at_its_rate_and_with_its_settings_alone(tmp_path: Path) -> None:
    sweep = Sweep(
        replace(TEST, rate=None), LiveSettings(), ServerOptions(Path()), (), "here", "typed", tmp_path
    )
    assert live_sweep._begun(sweep) is None
    (tmp_path / live_sweep.BEGUN).write_text(json.dumps({**live_sweep._settings(sweep), "rate": 21.5}))
    more = replace(sweep, test=replace(sweep.test, seeds=5, policies=("fedstill",)))
    assert live_sweep._begun(more) == 21.5
    for other in (
        replace(sweep, test=replace(sweep.test, seconds=11)),
        replace(sweep, test=replace(sweep.test, rate=30.0)),
        replace(sweep, measured_on="elsewhere"),
    ):
        with pytest.raises(DataError, match="holds a sweep with other settings"):
            live_sweep._begun(other)


def test_a_ratio_of_utilities_is_above_zero_however_far_seeds_differ() -> None:
    found = run_virtual(replace(TEST, seeds=3), made_profile(), None, "typed")
    scale = {("tome10", 0): 4.0, ("tome10", 1): 4.0, ("tome10", 2): 40.0}
    rows = [replace(row, utility_earned=100.0 / scale.get((row.policy, row.seed), 1.0)) for row in found.runs]
    made = replace(found, runs=tuple(rows))
    ratio = paired_ratio(made, "pets", "tome10", "synthetic", 1.0)
    assert ratio is not None
    assert ratio.value == pytest.approx((4 * 4 * 40) ** (1 / 3))
    spread = 4.303 * np.std(np.log([4, 4, 40]), ddof=1) / 3**0.5  # Student's t of two degrees of freedom
    assert (ratio.low, ratio.high) == pytest.approx(
        (ratio.value / np.exp(spread), ratio.value * np.exp(spread)), rel=1e-3
    )
    assert paired_ratio(made, "pets", "fedstill", "synthetic", 1.0) is None
    for policy, expected in (("pets", Mean(0.0, 0.0, 0.0)), ("tome10", None)):
        poor = [replace(row, utility_earned=0.0) if row.policy == policy else row for row in rows]
        nothing = replace(found, runs=tuple(poor))
        assert paired_ratio(nothing, "pets", "tome10", "synthetic", 1.0) == expected


@pytest.mark.slow
def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"serve --policy fastest does not come up: .*unknown policy"):
        ServedProcess(ServerOptions(tmp_path), "fastest").__enter__()
