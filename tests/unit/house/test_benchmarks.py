"""The benchmarks keep working and keep finding both ways equal."""

from __future__ import annotations

import json
import os
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.runs import prepared_run

from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.federation.seed_state import GENERIC, SeedCloud
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.evaluation.serving.virtual import LoadTest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def benchmark(name: str) -> dict[str, Any]:
    """What the file of this name holds, in whichever room it is."""
    (path,) = BENCHMARKS.glob(f"**/{name}.py")
    return runpy.run_path(str(path))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("bank", marks=pytest.mark.slow),
        "check_speed",
        "clustering",
        "downlink",
        pytest.param("edge_runtime", marks=pytest.mark.slow),
        pytest.param("elastic_vit", marks=pytest.mark.slow),
        pytest.param("engine_backends", marks=pytest.mark.slow),
        "fleet_proxy",
        pytest.param("import_time", marks=pytest.mark.slow),
        "inference_batching",
        pytest.param("message_start", marks=pytest.mark.slow),
        pytest.param("many_agents", marks=pytest.mark.slow),
        pytest.param("prepare_speed", marks=pytest.mark.slow),
        "proportional_attention",
        pytest.param("reductions", marks=pytest.mark.slow),
        "selection",
        "serving_decision",
    ],
)
def test_a_quick_benchmark_ends_well_and_prints_a_ratio(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark(name)["main"](["--quick"])
    assert "ratio" in capsys.readouterr().out


@pytest.mark.slow
def test_the_memory_of_kernels_is_measured(capfd: pytest.CaptureFixture[str]) -> None:
    benchmark("kernel_memory")["main"](["--quick"])
    assert re.search(
        r"torch fp32( packed)?,  1024 kernels kept", capfd.readouterr().out
    )  # whichever is faster


def test_the_uplink_benchmark_measures_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("uplink")["main"](["--clips", "60"])
    report = capsys.readouterr().out
    assert report.count("meets 1/50") == report.count(", ratio") == 12


def test_the_coverage_of_intervals_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("interval_coverage")["main"](["--quick"])
    assert "no true difference" in capsys.readouterr().out


@pytest.mark.slow
def test_the_guard_of_the_class_mix_is_measured(tmp_path: Path) -> None:
    arguments = ["--quick", "--out", str(tmp_path / "kept"), "--markdown", str(tmp_path / "class_mix.md")]
    found = []
    for _ in ("train", "read again"):
        benchmark("class_mix")["main"](arguments)
        found.append((tmp_path / "class_mix" / "devices.json").read_text())
    assert found[0] == found[1]
    page = (tmp_path / "class_mix.md").read_text()
    assert all(heading in page for heading in ("EM", "untested mix", "guarded mix", "Where it harms"))
    counts = json.loads(found[0])
    devices = [
        dict(zip(counts["columns"], device, strict=True))
        for recordings in counts["sets"].values()
        for kinds in recordings.values()
        for kind in kinds.values()
        for device in kind
    ]
    assert len(devices) == 8 * (7 + 5)
    assert all(one["guarded"] == one[("generic", "untested")[one["allowed"]]] for one in devices)
    assert any(one["untested"] != one["generic"] for one in devices)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["serving_live", "serving_baselines"])
def test_a_quick_comparison_of_live_servers_ends_well(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "serving_baselines":
        pytest.importorskip("litserve", reason="install fedstill[bench] to compare with LitServe")
    cores = os.sched_getaffinity(0)
    try:
        benchmark(name)["main"](["--quick"])
    finally:
        os.sched_setaffinity(0, cores)
    assert "ratio of fedstill to" in capsys.readouterr().out


def test_a_schedule_that_loses_less_earns_more_in_virtual_time() -> None:
    module = benchmark("reductions_utility")
    schedules = tuple(
        Schedule(name, delta, 0.002, seconds, (accuracy,), 16)
        for name, delta, seconds, accuracy in (
            ("0", 0, 0.010, 0.9),
            ("-20", -20, 0.005, 0.5),
            ("g10", 0, 0.005, 0.8),
        )
    )
    test = LoadTest(("synthetic",), ("fedstill",), (2.0,), seeds=1, seconds=20.0, rate=90.0)
    pairs = module["virtual"](Profile("made", "by hand", ("cats",), schedules), test)
    assert set(pairs) == {("virtual", "mixed"), ("virtual", "equal")}
    assert all(
        larger.utility_earned > usual.utility_earned for rows in pairs.values() for larger, usual in rows
    )
    assert len(module["table"](pairs)) == 4


@pytest.mark.slow
def test_the_level_benchmark_drives_a_device_through_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("level_choice")["main"](["--quick"])
    report = capsys.readouterr().out
    assert "at most" in report
    assert all(segment in report for segment in ("good", "64 kbit/s", "outage", "recovery"))


@pytest.mark.slow
def test_both_layouts_are_timed_for_every_width(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("training_layout")["main"](["--steps", "1"])
    assert capsys.readouterr().out.count("ratio") == 3


@pytest.mark.parametrize(("target", "expected"), [(8.0, 0.8), (16.0, 1.6), (24.0, 2.4), (50.0, None)])
def test_the_severity_of_a_loss_is_found(target: float, expected: float | None) -> None:
    found = benchmark("capture_severity")["severity_for"]
    asked: list[float] = []

    def loss(severity: float) -> float:
        asked.append(severity)
        return 10 * severity

    assert found(target, loss, 7) == (None if expected is None else pytest.approx(expected, abs=4 / 2**7))
    assert len(asked) <= 8


def test_severities_are_measured_on_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conditions = '[{sound="white_noise", pictures="gamma"}, {sound="low_pass", pictures="blur"}]'
    overrides = [
        "partition.kind=robustness",
        f"robustness.conditions={conditions}",
        'robustness.scenarios=["D"]',
    ]
    run_dir = prepared_run(tmp_path, overrides)
    metrics = Metrics(run_dir)
    SeedCloud(read_plan(run_dir), 0, metrics).shared(GENERIC)
    metrics.close()
    benchmark("capture_severity")["main"](
        [str(run_dir), "--clips", "10", "--steps", "2", "--conditions", "robustness"]
    )
    report = capsys.readouterr().out
    assert "as public clips" in report
    assert "of 10 clips" in report
    assert report.count("severities = [") == 6


@pytest.mark.slow
def test_devices_that_change_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for _ in ("serve", "read again"):
        benchmark("drift")["main"](
            ["--quick", "--out", str(tmp_path), "--markdown", str(tmp_path / "page.md")]
        )
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    (seed,) = tmp_path.glob("seed*.json")
    outcome = json.loads(seed.read_text())
    assert outcome["visits"][0] == 1
    assert outcome["causes"][2] == "drift"
    assert "of 3 resamples" in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_the_simulation_of_cohorts_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for _ in ("train", "read again"):
        benchmark("cohorts")["main"](["--quick", "--out", str(tmp_path)])
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    assert "mean loss" in found[0]
    assert "trainings" in found[0]


def test_the_ceiling_is_of_the_schedule_that_answers_most_right() -> None:
    schedules = (
        Schedule("0", 0, 0.0, 0.01, (0.9, 0.7), 8),
        Schedule("-20", -20, 0.0, 0.005, (0.6, 0.6), 8),
    )
    profile = Profile("made", "by hand", ("cats", "dogs"), schedules)
    ceiling = benchmark("serving_baselines")["ceiling"]

    assert ceiling(profile, 50.0).startswith("ceiling of right answers: 80.0 % of 50 ")
    assert "only ran schedule 0, 100 images/s" in ceiling(profile, 50.0)
    assert ceiling(profile, 200.0).startswith("ceiling of right answers: 60.0 % of 200 ")
    assert "only ran schedule -20, 200 images/s" in ceiling(profile, 200.0)
    assert "30.0 % of 400" in ceiling(profile, 400.0)
    assert "50 % answered" in ceiling(profile, 400.0)
