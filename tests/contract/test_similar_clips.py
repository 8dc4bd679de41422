"""Prototypes are asked for only where they may pay, and a device that gives none still gets a student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.live_service import run_of_a_service, service_of
from helpers.runs import copied_run, prepared_run

from fedstill.cloud_server.distillation.candidates import Candidate, Training
from fedstill.cloud_server.federation import personal_student
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.edge_client.privacy import prototypes
from fedstill.edge_client.privacy.privacy_policy import POLICY_FILE, allow
from fedstill.simulation.inprocess import run_inprocess

pytestmark = pytest.mark.slow

ONE_ARM = ("run.arms=['fedstill']", "run.scenarios=['latency_insensitive']")
ASKED = 2
"""The round of the question."""


def jobs_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: str) -> list[dict[str, Any]]:
    """The jobs of a tiny run where nothing else than similar clips comes into question, if prototypes can be had."""
    only_similar(monkeypatch)
    run_dir = prepared_run(folder, [*ONE_ARM, *changes])
    run_inprocess(run_dir, 2)
    jobs = [event for event in read_events(run_dir) if event["event"] == "job" and event["arm"] == "fedstill"]
    assert len(jobs) == 2
    return jobs


def only_similar(monkeypatch: pytest.MonkeyPatch) -> None:
    similar = Candidate(Training(similar=True))

    def found(rendered: bool, mix: object, *, prototypes: bool) -> tuple[Candidate, ...]:
        return (similar,) if prototypes else ()

    monkeypatch.setattr(personal_student, "candidates_for", found)


@pytest.mark.parametrize("allowed", ["", "samples"])
def test_a_service_takes_the_next_best_student_where_the_owner_allows_no_prototypes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    only_similar(monkeypatch)
    run_dir = in_service(run_of_a_service(tmp_path), tmp_path / "served")
    home = run_dir / "devices" / "0"
    (home / POLICY_FILE).unlink()
    allow(home, allowed)
    with service_of(run_dir, [0]) as running:
        assert running.serve(0, 0).attempts == 0
    (job,) = (event for event in read_events(run_dir) if event["event"] == "job")
    assert job["choice"]["chosen"] == ("similar" if allowed else "generic")
    refused = [event["reason"] for event in read_events(run_dir) if event["event"] == "no_prototypes"]
    assert ["accepts histogram" in reason for reason in refused] == ([] if allowed else [True])


def in_service(run_dir: Path, folder: Path) -> Path:
    return copied_run(run_dir, folder, "lock", service=True, clients=1, devices=("hall",), reply_timeout=60.0)


def test_prototypes_are_asked_for_once_and_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in jobs_of(tmp_path, monkeypatch):
        assert job["choice"]["chosen"] == "similar"
        assert job["choice"]["prototypes"] > 0
        assert [line["round"] for line in job["traffic"]].count(ASKED) == 1


def test_a_device_that_gives_none_keeps_the_generic_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*arguments: object) -> None:
        raise prototypes.DeviceError("no crowd to hide in")

    monkeypatch.setattr(prototypes, "constrained_prototypes", refuses)
    for job in jobs_of(tmp_path, monkeypatch):
        assert job["choice"]["chosen"] == "generic"
        assert job["choice"]["prototypes"] == 0
        assert job["evaluations"], "it has a student, and answered"


def test_with_private_prototypes_no_others_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = ("prototypes.kind='dp'", "prototypes.card_share=0.5", "prototypes.epsilon=50.0")
    for job in jobs_of(tmp_path, monkeypatch, *private):
        assert job["choice"]["prototypes"] == 0
        assert ASKED not in [line["round"] for line in job["traffic"]]
