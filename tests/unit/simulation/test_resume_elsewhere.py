"""A run is continued wherever it lies now, and one that an older fedstill began says so."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.runs import prepared_run, silent_console, tiny_experiment
from rich.console import Console

from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.common.errors import ConfigError
from fedstill.simulation.deployment import prepare_deployment
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


def test_a_fleet_that_goes_on_without_credentials_has_numbers_and_no_names(tmp_path: Path) -> None:
    experiment, state = tiny_experiment(tmp_path), tmp_path / "state"
    prepare_deployment(experiment, state, silent_console())
    write_plan(replace(read_plan(state), clients=2, devices=("hall", "kitchen")))
    prepare_deployment(experiment, state, silent_console(), clients=3)
    assert (read_plan(state).clients, read_plan(state).devices) == (3, ())

    plan = json.loads((state / "plan.json").read_text()) | {"devices": ["hall"]}
    (state / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"damaged \(devices: 1 names for 3 clients\)"):
        prepare_deployment(experiment, state, silent_console(), clients=3)
