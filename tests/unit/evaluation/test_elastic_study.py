"""The study measures what it says, reads back, and its tables hold the numbers of the digits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.image_folders import made_folder
from helpers.vit import tiny_trunk
from rich.console import Console

from fedstill.cloud_server.serving.engine.trunk import Trunk
from fedstill.datasets.images.image_tasks import open_image_task
from fedstill.evaluation.elastic.results import ScheduleRow, Study, StudySettings, TaskRow, read_study
from fedstill.evaluation.elastic.study import run_study, study_schedules
from fedstill.evaluation.elastic.tables import ELASTIC_TARGETS, elastic_page, reproduce_elastic
from fedstill.evaluation.results import ResultsError
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import check_distinct


def text_of(renderable) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.fixture
def study() -> Study:
    """Digits by hand: schedule 0 has 8 of 10 right, every other one 6, and scheme 4 the first 9."""
    labels = study_schedules(12)
    right = dict.fromkeys(labels, "1111110000") | {"0": "1111111100", "scheme 4": "1111111110"}
    rows = tuple(ScheduleRow(label, s.name, 168, 29, 2.0, 0.0, 0.125) for label, s in labels.items())
    prompted = {"scratch": "1111111000", "iterative": "1111111111"}
    task = TaskRow("cats", 2, 0.9, right, prompted)
    return Study(
        "vit",
        "fp32",
        StudySettings(prompt_epochs=2),
        rows,
        (task,),
        "2026-01-01T00:00:00",
        "a machine",
        1,
        {},
        "x",
    )


@pytest.mark.slow
def test_a_small_study_runs_and_reads_back(tmp_path: Path) -> None:
    net = ElasticViT(
        tiny_trunk(img_size=56, patch_size=4, depth=12, embed_dim=16, num_heads=1).requires_grad_(False)
    )
    task = open_image_task("pets", made_folder(tmp_path / "pets"))
    settings = StudySettings(8, 4, 4, prompt_images=4, prompt_epochs=1, rounds=1, timed_batches=(1, 2))
    lines: list[str] = []
    study = run_study(Trunk(net, "made", "f" * 64), [task], settings, tmp_path / "out", lines.append)
    assert read_study(tmp_path / "out") == study
    assert [row.label for row in study.schedules] == list(study_schedules(12))
    assert {len(digits) for digits in study.tasks[0].right.values()} == {4}
    assert set(study.tasks[0].prompted) == {"scratch", "iterative"}
    assert study.schedules[0].ideal_speed_up == 1.0
    assert all(row.images_per_second > 0 for row in study.schedules)
    assert any("loss" in line for line in lines)
    assert "pets" in elastic_page(study)


def test_the_schedules_of_the_study_differ_and_scheme_4_merges_as_many_as_14_per_layer() -> None:
    schedules = study_schedules(12)
    check_distinct(schedules.values(), 196)
    assert sum(schedules["scheme 4"].merges) == sum(schedules["-14"].merges) == 168


def test_tables_hold_the_numbers_of_the_digits(study: Study) -> None:
    table = text_of(reproduce_elastic("table3.2", study))
    assert "60.0 % [31.3, 83.2]" in table
    assert "90.0 % [59.6, 98.2]" in table
    assert "+30.0 [" in table
    assert "52.68" in table
    prompts = text_of(reproduce_elastic("table3.1", study))
    assert "+20.0 [" in prompts  # iterative against none: 10 of 10 against 8
    assert "89.61" in prompts
    assert "80.0 % [49.0, 94.3]" in text_of(reproduce_elastic("fig3.4a", study))
    assert "0.0 + 125.0 n ms" in text_of(reproduce_elastic("fig3.4b", study))


def test_the_page_has_every_table_and_no_prompts_without_prompts(study: Study) -> None:
    page = elastic_page(study)
    for title in ("Figure 3.4", "Table 3.2", "(about) equal tokens", "Table 3.1"):
        assert title in page
    task = replace(study.tasks[0], prompted={})
    without = replace(study, tasks=(task,))
    assert "Table 3.1" not in elastic_page(without)
    with pytest.raises(ResultsError, match="measure with: fedstill elastic --prompt-epochs"):
        reproduce_elastic("table3.1", without)


def test_what_is_not_there_is_said(tmp_path: Path, study: Study) -> None:
    with pytest.raises(ResultsError, match="no such file; make one with: fedstill elastic"):
        read_study(tmp_path)
    (tmp_path / "elastic_vit.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(ResultsError, match="another format"):
        read_study(tmp_path)
    (tmp_path / "elastic_vit.json").write_text("{")
    with pytest.raises(ResultsError, match="not readable"):
        read_study(tmp_path)
    with pytest.raises(ResultsError, match=f"known: {', '.join(ELASTIC_TARGETS)}"):
        reproduce_elastic("table9", study)
