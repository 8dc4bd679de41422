"""The fleet of the fault tests; see ``faults.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.faults import ARM, SETTINGS
from helpers.fleet import Fleet
from helpers.runs import TINY, prepared_run

from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.cloud_server.export.students import export_student
from fedstill.cloud_server.federation.event_log import Metrics
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.datasets.audiovisual.store import open_store
from fedstill.edge_client.folder import EXPORT_FOLDER
from fedstill.simulation.inprocess import run_inprocess


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same work without a fleet and without a fault; its devices' clips and their export serve all tests."""
    run_dir = prepared_run(tmp_path_factory.mktemp("undisturbed"), SETTINGS)
    plan = replace(read_plan(run_dir), arms=(ARM,), teacher_reference=False)
    write_plan(plan)
    metrics = Metrics(run_dir)
    _ = SeedCloud(plan, 0, metrics).all_distill
    metrics.close()
    for client in (0, 1):
        folder = run_dir / "devices" / str(client) / EXPORT_FOLDER
        export_student(run_dir / "seed0" / "all_distill", folder, store=open_store(run_dir / "public"))
    run_inprocess(run_dir, 2)
    return run_dir


@pytest.fixture
def fleet(undisturbed: Path, tmp_path: Path) -> Iterator[Fleet]:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY)
    devices = [undisturbed / "devices" / str(client) / "data" for client in (0, 1)]
    options = ["--arms", ARM, "--downlink", "exact"]
    options += [part for setting in SETTINGS for part in ("--set", setting)]
    with Fleet(tmp_path, experiment, devices, options, devices[0].parent / EXPORT_FOLDER) as made:
        yield made
