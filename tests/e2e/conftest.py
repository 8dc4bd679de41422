"""The fleet of the fault tests; see ``faults.py``."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.exports import export_to_devices
from helpers.faults import ARM, SETTINGS
from helpers.fleet import Fleet
from helpers.runs import TINY, prepared_run

from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.edge_client.folder import EXPORT_FOLDER
from fedstill.simulation.inprocess import run_inprocess


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The same work without a fleet and without a fault; its devices' clips and their export serve all tests.

    Made once per test run: pytest's workers share the folder above their own, and who comes second waits.
    """
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "undisturbed"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            make_undisturbed(folder)
            (folder / "done").touch()
    return folder / "run"


def make_undisturbed(folder: Path) -> None:
    run_dir = prepared_run(folder, SETTINGS)
    plan = replace(read_plan(run_dir), arms=(ARM,), teacher_reference=False)
    write_plan(plan)
    export_to_devices(run_dir, (0, 1))
    run_inprocess(run_dir, 2)


@pytest.fixture
def fleet(undisturbed: Path, tmp_path: Path) -> Iterator[Fleet]:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY)
    devices = [undisturbed / "devices" / str(client) / "data" for client in (0, 1)]
    options = ["--arms", ARM, "--downlink", "exact"]
    options += [part for setting in SETTINGS for part in ("--set", setting)]
    with Fleet(tmp_path, experiment, devices, options, devices[0].parent / EXPORT_FOLDER) as made:
        yield made
