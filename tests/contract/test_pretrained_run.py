"""A whole run under a teacher with two pretrained encoders: results, provenance, no row that devices cannot give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.pretrained import TIMM_MODEL, overrides_of, settings_of, written_hubert, written_timm
from helpers.runs import silent_console, table, tiny_experiment
from rich.console import Console

from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.journal.event_log import Metrics, read_events
from fedstill.common.errors import ConfigError
from fedstill.evaluation.results import PretrainedRow, Results, read_results
from fedstill.simulation.config import Experiment
from fedstill.simulation.deployment import prepare_deployment
from fedstill.simulation.launcher import prepare_run, simulate

pytestmark = pytest.mark.slow

ARMS = ("all_distill", "all_distill_select", "fedstill")


def experiment(folder: Path, frozen: bool = True, *more: str) -> Experiment:
    pictures, sound = written_timm(folder), written_hubert(folder)
    chosen = {
        "visual": settings_of(pictures, TIMM_MODEL, frozen),
        "audio": settings_of(sound, "wav2vec2_model", frozen),
    }
    lines = [line for modality, settings in chosen.items() for line in overrides_of(modality, settings)]
    plan = [f"run.arms={json.dumps(ARMS)}", 'run.scenarios=["latency_insensitive"]', "run.seeds=2"]
    installed = ["downlink.install=fedstill", "downlink.minimum_agreement=0.0"]
    return tiny_experiment(folder, [*lines, *plan, *installed, *more])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    simulate(experiment(folder), folder / "run", "inprocess", silent_console())
    return folder / "run"


@pytest.fixture(scope="module")
def results(run_dir: Path) -> Results:
    return read_results(run_dir)


def test_every_cell_is_there(results: Results) -> None:
    assert not results.failures
    cells = {(row.arm, row.client, row.seed) for row in results.rows}
    assert cells == {(arm, client, seed) for arm in ARMS for client in (0, 1) for seed in (0, 1)}


def test_hash_and_licence_are_in_the_results_and_on_the_page(run_dir: Path, results: Results) -> None:
    plan = read_plan(run_dir)
    assert [row.modality for row in results.pretrained] == ["visual", "audio"]
    for row in results.pretrained:
        used = plan.teacher.pretrained[row.modality]  # type: ignore[index]
        assert row == PretrainedRow(row.modality, used.model, used.sha256, "Apache-2.0", True)
        page = (run_dir / "report.html").read_text()
        assert row.sha256 in page
        assert f"licence {row.licence}" in page
    assert "timm" in results.versions
    assert results.parameters["teacher"] > 300_000, "the frozen encoders count"


def test_the_teacher_is_measured_where_it_can_run(results: Results) -> None:
    assert {row.scope for row in results.teacher} == {"public_holdout"}
    assert {row.seed for row in results.teacher} == {0, 1}


def test_devices_installed_their_student_against_this_teachers_canaries(run_dir: Path) -> None:
    installs = [event for event in read_events(run_dir) if event["event"] == "install"]
    assert {event["client"] for event in installs} == {0, 1}
    assert all(event["installed"] and 0 <= event["agreement"] <= 1 for event in installs)


def test_a_resumed_run_reuses_what_is_kept_and_needs_no_file(run_dir: Path, tmp_path: Path) -> None:
    plan = read_plan(run_dir)
    for settings in plan.teacher.pretrained.values():
        Path(settings.weights).unlink()
    metrics = Metrics(tmp_path)
    cloud = SeedCloud(plan, 0, metrics)
    kept = (run_dir / "seed0" / "teacher.safetensors").stat().st_mtime_ns
    assert cloud.bank.logits.shape[0] == len(cloud.public)
    assert cloud.teacher.head is not None
    metrics.close()
    assert (run_dir / "seed0" / "teacher.safetensors").stat().st_mtime_ns == kept
    assert not (tmp_path / "metrics.jsonl").read_text(), "nothing was trained again"


def test_devices_are_never_asked_to_run_it(run_dir: Path) -> None:
    plan = read_plan(run_dir)
    assert not plan.teacher_reference
    with pytest.raises(ValueError, match="devices cannot run"):
        replace(plan, teacher_reference=True)


def test_the_launcher_says_so_and_refuses_another_file_at_once(tmp_path: Path) -> None:
    mine = experiment(tmp_path)
    with (tmp_path / "log").open("w") as log:
        prepare_run(mine, tmp_path / "run", Console(file=log, width=200))
    assert "devices cannot run it" in (tmp_path / "log").read_text()
    written_timm(tmp_path, seed=1)
    for prepare in (prepare_run, prepare_deployment):
        with pytest.raises(ConfigError, match="another file than was meant"):
            prepare(mine, tmp_path / "other", silent_console())
    assert not (tmp_path / "other").exists()


def test_a_fine_tuned_run_gives_results(tmp_path: Path) -> None:
    one_arm = ["run.arms=['all_distill']", "downlink.install=all_distill", "run.seeds=1"]
    mine = experiment(tmp_path, False, *one_arm)
    results = simulate(mine, tmp_path / "run", "inprocess", silent_console())
    assert table(results)
    assert not any(row.frozen for row in results.pretrained)
    assert not (tmp_path / "run" / "pretrained").exists()
