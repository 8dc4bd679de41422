"""An experiment from a program: results, run directory, and the personal student of a device."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.runs import write_experiment

import fedstill
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

QUICK = ("run.arms=['all_distill', 'fedstill']", "run.scenarios=['latency_insensitive']")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    fedstill.run_experiment(write_experiment(folder), folder / "run", QUICK, engine="inprocess")
    return folder / "run"


def test_results_are_read_again(run_dir: Path) -> None:
    results = fedstill.read_results(run_dir)
    assert isinstance(results, fedstill.Results)
    assert {row.arm for row in results.rows} == {"all_distill", "fedstill"}
    assert (run_dir / "report.html").exists()


def test_the_student_of_a_device_classifies(run_dir: Path) -> None:
    student = fedstill.load_student(run_dir, client=1)
    shared = fedstill.load_student(run_dir / "seed0" / "all_distill")
    clip = SyntheticSource(frame_size=24).load(0)
    assert student.classify_clip(clip).label in student.class_names
    assert student.version != shared.version


def test_a_student_that_the_run_does_not_have(run_dir: Path) -> None:
    there = "there: latency_insensitive-client0, latency_insensitive-client1"
    for wrong in ({"client": 7}, {"scenario": "latency_sensitive"}):
        with pytest.raises(fedstill.UserError, match=there):
            fedstill.load_student(run_dir, **wrong)  # type: ignore[arg-type]
    with pytest.raises(fedstill.UserError, match=r"of seed 3 \(there: none\)"):
        fedstill.load_student(run_dir, seed=3)


def test_a_run_is_not_overwritten(run_dir: Path) -> None:
    with pytest.raises(fedstill.UserError, match="holds a run already"):
        fedstill.run_experiment("quickstart", run_dir)


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(fedstill.UserError, match="did you mean epochs"):
        fedstill.run_experiment("quickstart", tmp_path / "run", ["teacher.epoch=4"])
    assert not (tmp_path / "run").exists()


def test_shipped_experiments() -> None:
    assert "quickstart" in fedstill.shipped_experiments()
