"""One coordinator and three agents with TLS and node authentication do what ``fedstill simulate`` does."""

from __future__ import annotations

import json
import subprocess
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from fleet import Fleet
from made_runs import TINY, prepared_run

from fedstill.cloud_server.plan import read_plan, write_plan
from fedstill.protos.flower_cli import tool
from fedstill.simulation.gather import gather_rows
from fedstill.simulation.inprocess import run_inprocess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEVICES = 3
ARMS = ("all_distill", "all_distill_select", "fedstill")
THREE = ('partition.kind="pathological"', f"partition.clients={DEVICES}", "partition.classes_per_client=2")


def test_a_fleet_gives_the_rows_of_a_simulation(tmp_path: Path) -> None:
    (tmp_path / "simulated").mkdir()
    simulated = prepared_run(tmp_path / "simulated", THREE)
    write_plan(replace(read_plan(simulated), arms=ARMS))
    run_inprocess(simulated, DEVICES)
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY)
    devices = [simulated / "devices" / str(client) / "data" for client in range(DEVICES)]
    with Fleet(tmp_path, experiment, devices, ["--arms", ",".join(ARMS), "--downlink", "exact"]) as fleet:
        coordinator = fleet.coordinator()
        agents = [fleet.agent(client) for client in range(DEVICES)]
        assert coordinator.ended(500) == 0, coordinator.said()
        for agent in agents:
            assert agent.terminate() == 0, agent.said()
        said = "\n".join(one.said() for one in fleet.services)
    assert "Traceback" not in said
    expected, found = gather_rows(simulated), gather_rows(fleet.state)
    assert len(expected["rows"]) == 2 * len(ARMS) * DEVICES
    assert sorted(map(astuple, found["rows"])) == sorted(map(astuple, expected["rows"]))
    assert sorted(map(astuple, found["losses"])) == pytest.approx(sorted(map(astuple, expected["losses"])))
    assert found["failures"] == ()
    done = subprocess.run(
        [tool("fedstill"), "status", "--state", str(fleet.state), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    status = json.loads(done.stdout)
    assert status["run"] == "finished"
    assert [row["name"] for row in status["devices"]] == ["device-0", "device-1", "device-2"]
    assert all(row["jobs_done"] == 2 * len(ARMS) for row in status["devices"])
