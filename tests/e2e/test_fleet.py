"""One coordinator and three agents with TLS and node authentication do what ``fedstill simulate`` does."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import time
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.data import DATA
from helpers.exports import export_to_devices
from helpers.faults import losses
from helpers.fleet import Fleet, Service
from helpers.media import write_video
from helpers.quick import quick_environment
from helpers.runs import TINY, prepared_run, silent_console, write_experiment

from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.common.flower_cli import tool
from fedstill.edge_client.folder import EXPORT_FOLDER
from fedstill.simulation.config import load_experiment
from fedstill.simulation.gather import gather_rows
from fedstill.simulation.inprocess import run_inprocess
from fedstill.simulation.launcher import prepare_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DEVICES = 3
PATIENT = ("--set", "run.reply_timeout=400")
"""Other tests want the processor, too."""
ARMS = ("all_distill", "all_distill_select", "fedstill")
THREE = ('partition.kind="pathological"', f"partition.clients={DEVICES}", "partition.classes_per_client=2")
CLIPS = 8
"""Real ones of each class and split."""
ONE_SCENARIO = 'run.scenarios=["latency_sensitive"]'
"""The one in which a device asks about some of its clips and tests on others; real clips go through both."""
SHORT = (
    "run.seeds=1", "run.sweeps=[]", "teacher.epochs=1", "teacher.encoder.width=8", "student.epochs=1",
    "distillation.outer_epochs=1", "distillation.inner_epochs=1", "fedstill.outer_epochs=1", "fedstill.inner_epochs=1",
)  # fmt: skip


def test_an_agent_classifies_what_lands_in_its_folder(tmp_path: Path) -> None:
    """Before there is a student nothing is lost; then the cloud's head answers, and without a cloud the local one.

    In this fleet Flower waits as long as it does for users.
    """
    (tmp_path / "simulated").mkdir()
    simulated = prepared_run(tmp_path / "simulated")
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY)
    inbox = tmp_path / "inbox"
    write_video(inbox / "early.mp4")
    options = [
        "--arms", "fedstill", "--set", 'run.scenarios=["latency_insensitive"]',
        "--set", "downlink.minimum_agreement=0",  # a student of one epoch agrees with nobody
        *PATIENT,
    ]  # fmt: skip
    devices = [simulated / "devices" / "0" / "data"]
    with Fleet(tmp_path, experiment, devices, options, stock=True, inference=True) as fleet:
        coordinator = fleet.coordinator(once=False)
        where = f"127.0.0.1:{fleet.inference_port}"
        learn = ("--watch", str(inbox), "--learn-from", "inbox")
        agent = fleet.agent(0, "--inference", where, *learn, "--objective", "5000")
        fleet.wait_for(lambda: answers(agent), "the first answer")
        (early,) = answers(agent)
        assert early["clip"] == "early.mp4"
        assert early["class"] in ("neutral", "happy", "sad", "fear", "disgust", "angry")
        time.sleep(3)  # the connection to the cloud begins with the first clip
        write_video(inbox / ".late.mp4").rename(inbox / "late.mp4")
        fleet.wait_for(lambda: len(answers(agent)) == 2, "the second answer")
        late = answers(agent)[1]
        assert (late["path"], late["reason"]) == ("cloud", ""), late
        assert late["bytes"] > 0
        (inbox / "broken.mp4").write_bytes(b"no video")
        fleet.wait_for(lambda: len(answers(agent)) == 3, "the line about the broken clip")
        assert "error" in answers(agent)[2]
        assert coordinator.terminate() == 0
        write_video(inbox / ".alone.mp4").rename(inbox / "alone.mp4")
        fleet.wait_for(lambda: len(answers(agent)) == 4, "the answer without a cloud")
        alone = answers(agent)[3]
        assert (alone["path"], alone["bytes"]) == ("local", 0)
        # the three clips that were answered have one content
        said = fedstill("agent", "status", "--state", str(fleet.agent_state(0)))
        assert re.search("^agent +running$", said, re.MULTILINE)
        assert re.search("^student +[0-9a-f]{12}, ", said, re.MULTILINE)
        assert re.search("^clips .*; 1 of at most 256 learned from the watched folder$", said, re.MULTILINE)
        assert agent.terminate() == 0
        assert "join its clips: 1 of at most" in fedstill("privacy", str(fleet.agent_state(0)))
        once = subprocess.run(
            [tool("fedstill"), "agent", "infer", str(inbox / "late.mp4"), "--state", str(fleet.agent_state(0))],
            capture_output=True, text=True, check=True, env=quick_environment(),
        )  # fmt: skip
    line = json.loads(once.stdout)
    # The clips show the same; a compressed level's head may see it otherwise, the local head may not.
    assert (line["path"], line["class"], line["student"]) == ("local", alone["class"], late["student"])


def fedstill(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(
        [tool("fedstill"), *command], capture_output=True, text=True, check=True, env=quick_environment()
    ).stdout


def answers(agent: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in agent.said().splitlines() if line.startswith("{")]


def test_a_fleet_gives_the_rows_of_a_simulation(tmp_path: Path) -> None:
    """With real clips where the data folder is there, else with drawn ones, as the fault tests have."""
    experiment, overrides = clips_and_training(tmp_path)
    (tmp_path / "simulated").mkdir()
    simulated = tmp_path / "simulated" / "run"
    prepare_run(load_experiment(experiment, overrides), simulated, silent_console())
    write_plan(replace(read_plan(simulated), arms=ARMS))
    export_to_devices(simulated, range(1, DEVICES))  # the first one has torch
    run_inprocess(simulated, DEVICES)
    devices = [simulated / "devices" / str(client) / "data" for client in range(DEVICES)]
    sets = [part for one in overrides for part in ("--set", one)]
    options = ["--arms", ",".join(ARMS), "--downlink", "exact", "--cohorts", "0", *sets, *PATIENT]
    export = simulated / "devices" / "1" / EXPORT_FOLDER
    with Fleet(tmp_path, Path(experiment), devices, options, export, with_torch=(0,)) as fleet:
        coordinator = fleet.coordinator()
        agents = [fleet.agent(client) for client in range(DEVICES)]
        assert coordinator.ended(900) == 0, coordinator.said()
        for agent in agents:
            assert agent.terminate() == 0, agent.said()
        said = "\n".join(one.said() for one in fleet.services)
    assert "Traceback" not in said
    expected, found = gather_rows(simulated), gather_rows(fleet.state)
    assert len(expected["rows"]) == len(ARMS) * DEVICES
    assert sorted(map(astuple, found["rows"])) == sorted(map(astuple, expected["rows"]))
    assert losses(found, range(DEVICES)) == pytest.approx(losses(expected, range(DEVICES)), rel=1e-4)
    assert found["failures"] == ()
    done = subprocess.run(
        [tool("fedstill"), "status", "--state", str(fleet.state), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    status = json.loads(done.stdout)
    assert status["run"] == "finished"
    assert [row["name"] for row in status["devices"]] == ["device-0", "device-1", "device-2"]
    assert all(row["jobs_done"] == len(ARMS) for row in status["devices"])


def clips_and_training(folder: Path) -> tuple[str, tuple[str, ...]]:
    """An experiment and its settings, for three devices."""
    table = DATA / "emotion_pairs" / "manifest.csv"
    if not table.exists():
        return str(write_experiment(folder)), (*THREE, ONE_SCENARIO)
    few = folder / "few.csv"
    write_some_rows(table, few)
    where = (f'dataset.manifest="{few}"', f'dataset.root="{table.parent}"')
    return "emotion_pairs", (*THREE, ONE_SCENARIO, *SHORT, *where)


def write_some_rows(table: Path, few: Path) -> None:
    """``CLIPS`` of each class and split, from all over the table, so that there are several speakers."""
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames or ()
    with few.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for kind in sorted({(row["split"], row["label"]) for row in rows}):
            of_kind = [row for row in rows if (row["split"], row["label"]) == kind]
            writer.writerows(of_kind[:: len(of_kind) // CLIPS][:CLIPS])
