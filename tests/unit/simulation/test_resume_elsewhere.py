"""A run is continued where it was made, and one that an older fedstill began says so."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from helpers.runs import prepared_run
from rich.console import Console

from fedstill.common.errors import ConfigError
from fedstill.simulation.launcher import load_run, simulate


def test_a_copied_run_is_not_continued_in_the_folder_it_came_from(tmp_path: Path) -> None:
    run_dir = prepared_run(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    with pytest.raises(ConfigError, match=f"^{copy}: this run was made in {run_dir}; move it back"):
        simulate(load_run(copy), copy, "inprocess", Console(file=io.StringIO()))
    assert not (run_dir / "metrics.jsonl").exists()


def test_a_run_of_an_older_fedstill_says_what_is_mixed(tmp_path: Path) -> None:
    run_dir = prepared_run(tmp_path, ('run.arms=["all_distill"]', 'run.scenarios=["latency_insensitive"]'))
    plan = json.loads((run_dir / "plan.json").read_text())
    del plan["capture"]
    (run_dir / "plan.json").write_text(json.dumps(plan))
    said = io.StringIO()
    simulate(load_run(run_dir), run_dir, "inprocess", Console(file=said, width=200))
    assert "begun by an older fedstill" in said.getvalue()
