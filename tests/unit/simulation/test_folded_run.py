"""``fedstill simulate --folds``: every speaker is tested once, by students that never met that speaker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.command import CliRunner
from helpers.results import made_run
from helpers.runs import write_experiment

from fedstill.cli.main import app
from fedstill.common.errors import UserError
from fedstill.datasets.audiovisual.store import open_store
from fedstill.evaluation.results import Results, check_agreement, read_clips, read_results
from fedstill.simulation import folded_run
from fedstill.simulation.run_experiment import run_experiment

QUICK = (
    "--set", "run.arms=['all_distill', 'fedstill']", "--set", "run.scenarios=['latency_insensitive']",
    "--engine", "inprocess",
)  # fmt: skip
FOLDS = 2


def fedstill(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, " ".join(result.output.split())


def speakers(folder: Path) -> set[str]:
    return {clip.speaker for clip in open_store(folder).info}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_tests_every_speaker_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def interrupted(experiment: Any, *rest: Any) -> Results:
        begun.append(experiment.dataset.fold)
        if len(begun) == FOLDS:
            raise KeyboardInterrupt
        return simulate(experiment, *rest)

    run, simulate = tmp_path / "run", folded_run.simulate
    monkeypatch.setattr(folded_run, "simulate", interrupted)
    code, said = fedstill("simulate", write_experiment(tmp_path), "--folds", FOLDS, "--out", run, *QUICK)
    assert code == 130
    assert f"--resume {run}" in said
    code, said = fedstill("simulate", "--resume", run, "--engine", "inprocess")
    assert code == 0, said
    assert "fold 1 of 2: finished" in said
    assert begun == [0, 1, 1]

    results, clips = read_results(run), read_clips(run)
    check_agreement(results, clips)
    parts = [read_results(run / f"fold{fold}") for fold in range(FOLDS)]
    assert [one.client for one in results.clients] == [0, 1, 2, 3]
    assert sum(row.total for row in results.rows) == sum(row.total for part in parts for row in part.rows)
    assert results.config["dataset"]["folds"] == FOLDS
    assert (run / "report.html").exists()
    tested = [
        speakers(run / f"fold{fold}" / "devices" / str(client) / "data")
        for fold in (0, 1)
        for client in (0, 1)
    ]
    assert not (tested[0] | tested[1]) & (tested[2] | tested[3])
    for fold in range(FOLDS):
        public = speakers(run / f"fold{fold}" / "public")
        assert public == tested[2 - 2 * fold] | tested[3 - 2 * fold]
    (run / "fold0" / "results.json").write_text("{")
    code, said = fedstill("simulate", "--resume", run, "--engine", "inprocess")
    assert code == 0, said
    assert read_results(run).rows == results.rows, "a damaged fold is gathered again"
    code, said = fedstill("simulate", write_experiment(tmp_path), "--folds", FOLDS, "--out", run, *QUICK)
    assert code == 2
    assert "holds a run already" in said
    with pytest.raises(UserError, match="holds a run already"):
        run_experiment("quickstart", run)


def test_devices_of_all_folds_have_numbers_of_their_own() -> None:
    first, _ = made_run(clients=2, seeds=(0,))
    second, _ = made_run(clients=3, seeds=(0,))
    config = {"dataset": {"folds": 2, "fold": 0}}
    found = folded_run.merged(
        [
            replace(first, config=config, seconds={"total": 2.0}),
            replace(second, config=config, seconds={"total": 3.0}),
        ]
    )
    assert [one.client for one in found.clients] == [0, 1, 2, 3, 4]
    assert {row.client for row in found.rows} == {0, 1, 2, 3, 4}
    assert {row.client for row in found.teacher} == {None, 0, 1, 2, 3}  # made up for two devices each
    for name in folded_run.BY_CLIENT:
        assert len(getattr(found, name)) == len(getattr(first, name)) + len(getattr(second, name))
    assert found.seconds == {"total": 5.0}
    assert found.config == {"dataset": {"folds": 2}}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("quickstart", "--folds", 1), "1 is not in the range x>=2"),
        (("quickstart", "--folds", 999), "no fold 0 of 999: choose 1 to 22 folds"),
        (("robustness_synthetic", "--folds", 2), "has folds of its own"),
        (("quickstart", "--set", "dataset.fold=1"), "fold: 1 is not one of 0 to 0"),
        (("robustness_synthetic", "--set", "dataset.folds=2"), "set robustness.folds and robustness.fold"),
        (("--resume", "nowhere", "--folds", 2), "drop --seeds, --set, --folds"),
    ],
)
def test_a_mistake_is_one_line(options: tuple[object, ...], reason: str, tmp_path: Path) -> None:
    place = () if "--resume" in options else ("--out", tmp_path / "run")
    code, said = fedstill("simulate", *options, *place)
    assert code == 2
    assert reason in said
    assert not (tmp_path / "run" / "fold0" / "plan.json").exists()
