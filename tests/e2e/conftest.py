"""The fleet of the fault tests; see ``faults.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faults import ARM, SETTINGS
from fleet import Fleet
from made_runs import TINY, prepared_run

from fedstill.cloud_server.plan import read_plan, write_plan
from fedstill.simulation.inprocess import run_inprocess


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same work without a fleet and without a fault; its devices' clips serve all tests."""
    run_dir = prepared_run(tmp_path_factory.mktemp("undisturbed"), SETTINGS)
    write_plan(replace(read_plan(run_dir), arms=(ARM,), teacher_reference=False))
    run_inprocess(run_dir, 2)
    return run_dir


@pytest.fixture
def fleet(undisturbed: Path, tmp_path: Path) -> Iterator[Fleet]:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY)
    devices = [undisturbed / "devices" / str(client) / "data" for client in (0, 1)]
    options = [
        "--arms",
        ARM,
        "--downlink",
        "exact",
        *(part for setting in SETTINGS for part in ("--set", setting)),
    ]
    with Fleet(tmp_path, experiment, devices, options) as made:
        yield made
