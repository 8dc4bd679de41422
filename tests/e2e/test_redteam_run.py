"""Guards ``fedstill redteam`` from experiment to page, and from a run directory, on the smallest clips there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import CliRunner
from helpers.runs import write_experiment

from fedstill.cli import main as cli
from fedstill.cli.shared.console import console, errors
from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.datasets.audiovisual.store import open_store
from fedstill.evaluation.redteam import intervals, inversion
from fedstill.simulation.config import load_experiment
from fedstill.simulation.launcher import prepare_run

ENOUGH = ["dataset.public_per_class=16", "compute.precision=fp32"]
OVERRIDES = [part for change in ENOUGH for part in ("--set", change)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
    monkeypatch.setattr(inversion, "EPOCHS", 2)
    monkeypatch.setattr(errors, "_width", 300)


@pytest.mark.slow
def test_from_an_experiment_to_a_page(tmp_path: Path) -> None:
    experiment, out = str(write_experiment(tmp_path)), tmp_path / "out"
    arguments = ["redteam", "--experiment", experiment, *OVERRIDES, "--draws", "2", "--out", str(out)]
    done = CliRunner().invoke(cli.app, [*arguments, "--markdown", str(tmp_path / "privacy.md")])
    assert done.exit_code == 0, done.output
    results = json.loads((out / "redteam.json").read_text())
    assert not results["student_saw_victims"]
    assert results["synthetic"]
    assert results["clips"] == [66, 30]
    assert results["speakers"] == [11, 5]
    assert results["card"]["outcomes"][0]["key"] == "card_exact"
    assert results["card"]["speaker_chance"] == pytest.approx(1 / 5)
    assert "| private card, epsilon 8 |" in (tmp_path / "privacy.md").read_text()
    assert "`compute.precision=fp32`" in (tmp_path / "privacy.md").read_text()
    attacker, victims = (open_store(out / "stage" / name) for name in ("attacker", "victims"))
    assert not set(attacker.speakers) & set(victims.speakers)
    before = (out / "stage" / "seed0" / "all_distill.safetensors").stat().st_mtime_ns
    again = CliRunner().invoke(cli.app, arguments)  # what is trained stays
    assert again.exit_code == 0, again.output
    assert json.loads((out / "redteam.json").read_text()) == results
    assert (out / "stage" / "seed0" / "all_distill.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_from_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    prepare_run(load_experiment(str(write_experiment(tmp_path)), ENOUGH), run_dir, console)
    begun = CliRunner().invoke(cli.app, ["redteam", str(run_dir), "--out", str(tmp_path / "out")])
    assert begun.exit_code == 2
    assert "no trained student for seed 0" in begun.stderr
    metrics = Metrics(run_dir)
    _ = SeedCloud(read_plan(run_dir), 0, metrics).all_distill
    metrics.close()
    kept = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}
    done = CliRunner().invoke(
        cli.app, ["redteam", str(run_dir), "--draws", "1", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "redteam.json").read_text())["student_saw_victims"]
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")} == kept
