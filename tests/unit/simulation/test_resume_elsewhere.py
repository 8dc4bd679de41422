"""A run is continued wherever it lies now, and one that an older fedstill began says so."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

from helpers.runs import prepared_run
from rich.console import Console

from fedstill.simulation.launcher import load_run, simulate

ONE_ARM = ('run.arms=["all_distill"]', 'run.scenarios=["latency_insensitive"]')


def test_a_copied_run_is_continued_in_its_new_place(tmp_path: Path) -> None:
    run_dir = prepared_run(tmp_path, ONE_ARM)
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    before = sorted(run_dir.rglob("*"))
    results = simulate(load_run(copy), copy, "inprocess", Console(file=io.StringIO()))
    assert len(results.rows) == 2
    assert (copy / "journal.db").exists()
    assert sorted(run_dir.rglob("*")) == before, "the folder that it came from stays as it was"


def test_a_run_of_an_older_fedstill_says_what_is_mixed(tmp_path: Path) -> None:
    run_dir = prepared_run(tmp_path, ONE_ARM)
    plan = json.loads((run_dir / "plan.json").read_text())
    del plan["capture"]
    (run_dir / "plan.json").write_text(json.dumps(plan))
    said = io.StringIO()
    simulate(load_run(run_dir), run_dir, "inprocess", Console(file=said, width=200))
    assert "begun by an older fedstill" in said.getvalue()
