"""The table of run kinds names what there is, and says which kind a folder is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedstill.common.errors import ConfigError
from fedstill.evaluation.elastic.tables import ELASTIC_TARGETS
from fedstill.evaluation.federated.reproduce import TARGETS
from fedstill.evaluation.runs import run_kinds
from fedstill.evaluation.serving.reproduce import TABLES
from fedstill.evaluation.warmup.tables import WARMUP_TARGETS


def test_every_target_that_can_be_rendered_is_in_the_table() -> None:
    assert run_kinds.SIMULATION.targets == tuple(TARGETS)
    assert run_kinds.LOAD_TEST.targets == tuple(TABLES)
    assert run_kinds.ELASTIC.targets == tuple(ELASTIC_TARGETS)
    assert run_kinds.WARMUP.targets == tuple(WARMUP_TARGETS)
    assert len(run_kinds.TARGETS) == sum(len(kind.targets) for kind in run_kinds.KINDS)


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("results.json", {"format": 1}, run_kinds.SIMULATION),
        ("results.json", {"format": 1, "kind": "loadtest"}, run_kinds.LOAD_TEST),
        ("elastic_vit.json", {"format": 1}, run_kinds.ELASTIC),
        ("warmup.json", {"format": 1}, run_kinds.WARMUP),
        ("results.json", [], None),
        ("other.json", {}, None),
    ],
)
def test_a_folder_says_what_it_holds(
    tmp_path: Path, file: str, content: object, kind: run_kinds.RunKind | None
) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    assert run_kinds.kind_of(tmp_path) is kind


def test_a_target_of_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elastic_vit.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"unknown target 'table5\.2' for a study of fedstill elastic"):
        run_kinds.reproduce("table5.2", tmp_path)


def test_a_study_without_a_report_says_what_shows_it(tmp_path: Path) -> None:
    (tmp_path / "warmup.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"type: fedstill warmup-study --render --out {tmp_path}"):
        run_kinds.report(tmp_path, None)
