"""The whole robustness study on tiny networks: runs, published methods, counts and page; and a second call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.runs import silent_console, write_experiment

from fedstill.cloud_server.distillation.arm_names import REFERENCES
from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.common.errors import ConfigError
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.students.torch_runtime import load_torch
from fedstill.evaluation.results import read_clips, read_results
from fedstill.evaluation.robustness.page import robustness_page
from fedstill.evaluation.robustness.records import Study, read_study
from fedstill.protos.messages import Job
from fedstill.simulation import published_methods as published
from fedstill.simulation import robustness_study as study
from fedstill.simulation.robustness_study import StudyOptions, full_clients, run_study

pytestmark = pytest.mark.slow

CONDITION = '{ sound = "white_noise", pictures = "gamma" }'
OVERRIDES = (
    "partition.kind=robustness",
    f"robustness.conditions=[{CONDITION}]",
    'robustness.scenarios=["A","B","D"]',
    "robustness.severities=[1.0]",
    "robustness.middle=1",
    "robustness.folds=2",
    'run.arms=["all_distill_equal_steps","prior_corrected"]',
    'run.scenarios=["latency_sensitive"]',
)
OPTIONS = StudyOptions(folds=(0,), seeds=2, arms=("all_distill",), set_=OVERRIDES)
FULL, LEAN = (0, 1, 2), 3
"""A and both halves of B; and D."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def first(out: Path) -> Study:
    return run(out)


def run(out: Path, options: StudyOptions = OPTIONS) -> Study:
    return run_study(
        [str(write_experiment(out))], options, out, "fedstill robustness-study", silent_console()
    )


def fold(out: Path) -> Path:
    return out / "tiny" / "fold0"


def test_full_cells_get_every_arm_and_seed_and_the_published_methods(out: Path, first: Study) -> None:
    everything = {GENERIC, "prior_corrected", "all_distill", *REFERENCES}
    clips = {(row.client, row.seed): set(row.correct) for row in read_clips(fold(out))}

    assert clips == {(client, seed): everything for client in FULL for seed in (0, 1)} | {
        (LEAN, 0): {GENERIC, "prior_corrected"}
    }
    assert len(first.sets[0].devices) == 7
    assert first.sets[0].seconds.keys() == {"preparation", "training", "published methods"}


def test_results_say_how_each_device_records(out: Path, first: Study) -> None:
    assert read_results(fold(out)).captures == (*["white noise, gamma"] * 3, "")


def test_published_methods_answer_the_devices_own_test_clips(out: Path, first: Study) -> None:
    device = Device(fold(out) / "devices" / "1", load_torch)
    _, test = device.roles(Job("latency_sensitive", "tent", 1, 0))
    ids = [device.store.info[position].clip_id for position in test]
    for arm in REFERENCES:
        outcome = json.loads(
            (device.directory / "references" / f"latency_sensitive.{arm}.1.json").read_text()
        )
        labels = [device.store.class_names[label] for label in device.store.labels[test]]
        right = "".join("01"[said == label] for said, label in zip(outcome["decided"], labels, strict=True))
        assert (outcome["clip_ids"], outcome["correct"]) == (ids, right)


def test_the_generic_student_that_published_methods_start_from_is_the_devices(
    out: Path, first: Study
) -> None:
    """With no adaptation at all, its answers are those that the device counted."""
    plan = read_plan(fold(out))
    models = published.SeedModels(plan, 0)
    device = Device(fold(out) / "devices" / "0", load_torch)
    _, test = device.roles(Job("latency_sensitive", GENERIC, 0, 0))
    decided = published._logits(models.generic, device, test).argmax(axis=1)
    counted = next(row for row in read_clips(fold(out)) if (row.client, row.seed) == (0, 0))
    right = decided == device.store.labels[test]
    assert "".join("01"[int(one)] for one in right) == counted.correct[GENERIC]


def test_what_is_finished_is_not_done_again(out: Path, first: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(study, "simulate", refused)
    monkeypatch.setattr(study, "prepare_run", refused)
    monkeypatch.setattr(published, "_evaluate", refused)
    again = run(out)

    assert again.sets[0].devices == first.sets[0].devices
    assert read_study(out) == again


def test_a_page_comes_of_it(first: Study) -> None:
    page = robustness_page(first, "robustness")

    assert "tiny: folds 1 of 2" in page
    assert (
        "tiny: 1 cells of D without AllDistill, teacher, teacher with the device's statistics, AdaBN, TENT"
        in page
    )
    assert "| A capture shift | TENT |" in page


def test_another_experiment_does_not_continue_in_the_folder(out: Path, first: Study) -> None:
    options = StudyOptions(folds=(0,), seeds=2, set_=(*OVERRIDES, "selection.budget=0.4"))
    with pytest.raises(ConfigError, match="fold0: was made with other settings; choose another --out"):
        run(out, options)


def test_more_can_be_asked_for_later(out: Path, first: Study) -> None:
    more = run(
        out, StudyOptions(folds=(0,), seeds=2, cells=("A", "B", "D"), arms=("all_distill",), set_=OVERRIDES)
    )

    assert len(more.sets[0].devices) == 8
    before = {(one.client, one.seed): one.right for one in first.sets[0].devices if one.client in FULL}
    after = {(one.client, one.seed): one.right for one in more.sets[0].devices if one.client in FULL}
    assert after == before
    assert read_results(fold(out)).seeds == (0, 1)


def test_mistakes_are_found_before_anything_is_run(tmp_path: Path) -> None:
    for options, message in (
        (StudyOptions(cells=("Z",), set_=OVERRIDES), r"--cells Z: no such cell; give scenarios \(A, B, D\)"),
        (StudyOptions(cells=("A.3",), set_=OVERRIDES), r"--cells A\.3: no such cell"),
        (StudyOptions(folds=(2,), set_=OVERRIDES), "--folds 2: tiny has folds 0 to 1"),
        (StudyOptions(arms=("best",), set_=OVERRIDES), "--arms best: no such arm"),
        (StudyOptions(), "tiny: needs partition.kind"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path, options)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_full_cells_are_a_at_the_middle_severity_and_b_unless_others_are_named(tmp_path: Path) -> None:
    from fedstill.simulation.config import load_experiment

    experiment = load_experiment(
        str(write_experiment(tmp_path)),
        [*OVERRIDES, "robustness.severities=[0.5,1.0,1.5]", "robustness.middle=2"],
    )
    assert full_clients(experiment, None) == (1, 3, 4)
    assert full_clients(experiment, ("A.3", "D")) == (2, 5)
