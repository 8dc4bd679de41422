"""The month in fast motion takes most of an hour; here are its draws, its hook, and that its checks can fail."""

from __future__ import annotations

import ast
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedstill.cloud_server.journal.journal import Journal, open_journal
from fedstill.cloud_server.journal.visit import CHANGE_PAUSE, FAILED, LOST, NEW, SERVED, Visit
from fedstill.edge_client.folder import KNOWN_CLIPS_FILE, SHELF_FOLDER

FOLDER = Path(__file__).parents[3] / "benchmarks" / "fleet"
SCALE = 1 / 360
IMPORTROOT = FOLDER.parents[1] / "importroot"
VERSION = "0123456789abcdef" * 4


def part(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.fixture(scope="module")
def checks() -> dict[str, Any]:
    return part("month_checks")


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(FOLDER / "month_hook"), str(IMPORTROOT)])
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths, **variables},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_same_seed_draws_the_same_month_and_every_event_is_possible() -> None:
    events = part("month_events")
    first, drawn = events["draw"](0, 200, 30, 1800.0)
    assert [vars(one) for one in events["draw"](0, 200, 30, 1800.0)[1]] == [vars(one) for one in drawn]
    assert {one.kind for one in drawn} == set(events["WEIGHTS"])
    assert {one.what for one in drawn if one.kind == "kill -9"} == set(events["PROCESSES"])
    here, known = set(range(first)), set(range(first))
    for one in drawn:
        if one.kind == "join":
            assert one.client not in here
            assert one.client in known or one.client == len(known), (
                "new ones come in the order of their numbers"
            )
            here.add(one.client)
            known.add(one.client)
        elif one.client >= 0:
            assert one.client in here
        if one.kind == "leave":
            here.discard(one.client)
    assert sorted(one.at for one in drawn) == [one.at for one in drawn]


def test_every_timer_of_ours_is_there_and_scaled_when_its_module_is_imported() -> None:
    hook = runpy.run_path(str(FOLDER / "month_hook" / "sitecustomize.py"))
    for module, names in hook["TIMERS"].items():
        source = IMPORTROOT / f"{module.replace('.', '/')}.py"
        assigned = {name.id for name in ast.walk(ast.parse(source.read_text())) if isinstance(name, ast.Name)}
        assert set(names) <= assigned, module
    light = {name: value for name, value in hook["TIMERS"].items() if "journal" in name or "node" in name}
    code = (
        f"import importlib, json; print(json.dumps({{name: getattr(importlib.import_module(module), name) "
        f"for module, names in {light!r}.items() for name in names}}))"
    )
    stock, scaled = (
        json.loads(python(code, **variables).stdout)
        for variables in ({}, {"MONTH_SCALE": repr(SCALE), "MONTH_VERSION": "0.2.7"})
    )
    assert stock["CHANGE_PAUSE"] == CHANGE_PAUSE
    assert scaled.pop("QUIET_SECONDS") == hook["LEAST"]["QUIET_SECONDS"] < stock.pop("QUIET_SECONDS")
    assert scaled == pytest.approx({name: SCALE * seconds for name, seconds in stock.items()})


def test_the_hook_stands_for_another_version_and_for_no_torch_and_refuses_a_lost_name() -> None:
    code = "from importlib.metadata import version; print(version('fedstill')); import torch"
    done = python(code, MONTH_VERSION="0.2.7", MONTH_SCALE="1.0", MONTH_DEVICE="1")
    assert done.stdout == "0.2.7\n"
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'torch'"
    code = "import sitecustomize as s; s.TIMERS['colorsys'] = ('GONE',); import colorsys"
    assert python(code, MONTH_SCALE="1.0").stderr.strip() == "month_hook: colorsys has no GONE any more"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Any]:
    """One device, as it is at the end of a good month: a new card was the reason for its second visit."""
    state, clips = tmp_path / "device", tmp_path / "clips"
    (state / SHELF_FOLDER).mkdir(parents=True)
    (state / SHELF_FOLDER / f"{VERSION}.safetensors").touch()
    (state / SHELF_FOLDER / "current.json").write_text(json.dumps({"current": VERSION, "previous": ""}))
    names = [f"{number:04d}" for number in range(8)]
    known = {"job": "j", "version": "0.1.0", "clips": [[name, name] for name in names], "left": []}
    (state / KNOWN_CLIPS_FILE).write_text(json.dumps(known))
    clips.mkdir()
    (clips / "manifest.csv").write_text("clip_id\n" + "\n".join(names) + "\n")
    device = SimpleNamespace(
        client=0, name="hall", state=state, clips=clips, here=True, causes=[(1.0, "join"), (2.0, "SD card swapped")]
    )  # fmt: skip
    journal = open_journal(tmp_path)
    for visit in (Visit(0, 0, NEW, "hall"), Visit(0, 1, LOST, "hall")):
        done(journal, visit)
    yield SimpleNamespace(state=tmp_path, devices=[device], journal=journal)
    journal.close()


def done(journal: Journal, visit: Visit, outcome: str = SERVED) -> None:
    journal.visits.end(journal.visits.begin(visit), outcome, "no reply", VERSION)


def test_a_good_month_has_no_misses(fleet: Any, checks: dict[str, Any]) -> None:
    assert checks["behind"](fleet) == checks["served_twice"](fleet) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"outcome": FAILED}, "hall: its visit for 'lost its student' is failed no reply"),
        ({"device": "kitchen"}, "hall: the newest student is kitchen's"),
    ],
)
def test_a_device_that_is_behind_is_told(
    fleet: Any, checks: dict[str, Any], wrong: dict[str, str], said: str
) -> None:
    outcome = wrong.pop("outcome", SERVED)
    done(fleet.journal, replace(Visit(0, 1, LOST, "hall"), **wrong), outcome)
    assert checks["behind"](fleet) == [said]
    fleet.devices[0].here = False
    assert checks["behind"](fleet) == [], "who is away cannot have it"


def test_another_student_and_new_clips_are_told(fleet: Any, checks: dict[str, Any]) -> None:
    manifest = fleet.devices[0].clips / "manifest.csv"
    manifest.write_text(manifest.read_text() + "a\nb\n")
    assert checks["behind"](fleet) == ["hall: 2 of its 10 clips are new, and it has not said so"]
    (fleet.devices[0].state / SHELF_FOLDER / f"{VERSION}.safetensors").unlink()
    assert checks["behind"](fleet) == [f"hall: uses no student, not {VERSION}"]


def test_a_second_visit_for_one_cause_is_told(fleet: Any, checks: dict[str, Any]) -> None:
    done(fleet.journal, Visit(0, 2, LOST, "hall"))
    assert checks["served_twice"](fleet) == ["client 0: 2 visits for lost its student, 1 reasons"]
    done(fleet.journal, Visit(0, 3, "whim", "hall"))
    assert "a visit for 'whim', which nothing asked for" in checks["served_twice"](fleet)


def test_a_visit_without_its_upload_is_told(fleet: Any, checks: dict[str, Any]) -> None:
    told = checks["uploads_wrong"](fleet)
    assert told == [
        "latency_insensitive/fedstill/client0/seed0: served without an upload",
        "latency_insensitive/fedstill.visit.1/client0/seed0: served without an upload",
    ]
