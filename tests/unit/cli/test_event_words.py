"""An operator who follows a fleet sees how far trainings are, now and then; who reads what was sees no progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.command import CliRunner

from fedstill.cli import fleet
from fedstill.cli.main import app
from fedstill.cli.shared.event_words import EventWords, in_words, progress_in_words
from fedstill.cloud_server.journal.progress_pace import PROGRESS_SECONDS, ProgressPace

STUDENT = {
    "event": "student_epoch",
    "client": 1,
    "visit": 2,
    "candidate": "rendered",
    "epochs": 15,
    "loss": 0.5,
}


def at(seconds: float, **values: Any) -> dict[str, Any]:
    return {"time": seconds, **values}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "teacher_epoch", "epoch": 3, "epochs": 14}, "the teacher: epoch 3 of 14"),
        (
            {"event": "all_distill_epoch", "epoch": 1, "epochs": 9},
            "the student for all devices: epoch 1 of 9",
        ),
        (
            {"event": "equal_steps_epoch", "epoch": 1, "epochs": 9},
            "the student for all devices: epoch 1 of 9",
        ),
        (
            {"event": "fold_epoch", "fold": 1, "folds": 4, "epoch": 1, "epochs": 9},
            "its check 2 of 4, without some speakers: epoch 1 of 9",
        ),
        (
            STUDENT | {"epoch": 4, "purpose": "check"},
            "the student of kitchen (rendered) is tried without some speakers: epoch 4 of 15",
        ),
        (
            STUDENT | {"epoch": 4, "purpose": "final"},
            "the student of kitchen (rendered) is made: epoch 4 of 15",
        ),
        ({"event": "teacher_epoch", "epoch": 3}, ""),  # of an older fedstill
        ({"event": "job", "client": 1}, ""),
    ],
)
def test_progress_in_words(event: dict[str, Any], line: str) -> None:
    assert progress_in_words(event, ["hall", "kitchen"]) == line
    assert in_words(event) == "", "it is told only while it goes on"


def test_of_one_job_a_line_in_two_seconds_and_of_others_theirs() -> None:
    words = EventWords()

    def told(seconds: float, client: int | None, epoch: int) -> list[str]:
        event = at(seconds, **STUDENT, epoch=epoch, purpose="final") | {"client": client}
        if client is None:
            event = at(seconds, event="teacher_epoch", epoch=epoch, epochs=9)
        return [line[20:] for line in words.lines(event, (), True)]

    assert told(10.0, 1, 1) == ["the student of client 1 (rendered) is made: epoch 1 of 15"]
    assert told(11.0, 1, 2) == told(11.9, 1, 3) == []
    assert len(told(11.0, 0, 1)) == len(told(11.0, None, 1)) == 1, "another device, and what all share"
    assert told(12.0, 1, 4) == ["the student of client 1 (rendered) is made: epoch 4 of 15"]
    assert len(told(5.0, 1, 5)) == 1, "the clock was set back"
    served = at(5.1, event="all_served", devices=2)
    assert len(list(words.lines(served, (), True))) == 1, "what happened is always told"


def test_the_log_gets_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, now = ProgressPace(), [100.0]
    monkeypatch.setattr("fedstill.cloud_server.journal.progress_pace.time.monotonic", lambda: now[0])
    told = []
    for _ in range(40):  # ten seconds
        told.append((pace.is_time("shared"), pace.is_time(1)))
        now[0] += 0.25
    assert sum(one for one, _ in told) == sum(one for _, one in told) == 10 / PROGRESS_SECONDS
    assert told[0] == (True, True)


def test_only_who_follows_sees_progress_and_only_of_what_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "metrics.jsonl"

    def write(epoch: int, seconds: float) -> None:
        with log.open("a") as file:
            file.write(json.dumps(at(seconds, event="teacher_epoch", epoch=epoch, epochs=9)) + "\n")

    write(1, 10.0)
    shown = CliRunner().invoke(app, ["fleet", "events", "--state", str(tmp_path)])
    assert shown.output == ""

    class Stop(Exception):
        pass

    pauses = iter([lambda: write(2, 20.0), lambda: write(3, 20.5), lambda: write(4, 22.0)])

    def sleep(_: float) -> None:
        step = next(pauses, None)
        if step is None:
            raise Stop
        step()

    monkeypatch.setattr(fleet.time, "sleep", sleep)
    followed = CliRunner().invoke(app, ["fleet", "events", "--state", str(tmp_path), "--follow"])
    assert isinstance(followed.exception, Stop)
    assert [line[20:] for line in followed.output.splitlines()] == [
        "the teacher: epoch 2 of 9",
        "the teacher: epoch 4 of 9",
    ]


@pytest.mark.parametrize(
    "event",
    [
        {"event": "visited", "client": 0, "outcome": "failed", "reason": "", "next_attempt": None},
        {"event": "visit", "client": 0, "cause": "new", "visit": "x", "time": 1},
        {"event": "device"},
        {"event": "finished", "time": 1e300},
        {"event": "visited", "client": 0, "outcome": "served", "student": 5},
    ],
)
def test_an_event_of_another_form_stops_nothing(event: dict[str, Any]) -> None:
    assert list(EventWords().lines({"time": 1.0} | event, ["hall"], True)) == []


def test_what_a_device_says_stays_one_line() -> None:
    event = {
        "event": "refused",
        "node": "4\ud800",
        "reason": "x\n2026-01-01 00:00:00 hall online\x1b[2J",
        "time": 0,
    }
    (line,) = EventWords().lines(event, [], False)
    assert line.endswith("node 4? refused: x?2026-01-01 00:00:00 hall online?[2J")


def test_a_client_that_nobody_has_is_told_by_its_number() -> None:
    assert in_words({"event": "device", "client": -1, "state": "online"}, ["hall"]) == "client -1 online"
