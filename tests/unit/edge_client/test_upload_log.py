"""Every answer of a device is in its owner's log before it is sent, in words, and without its content."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.command import CliRunner

from fedstill.cli.main import app
from fedstill.edge_client.folder import FORMAT_FILE, SHELF_FOLDER
from fedstill.edge_client.node.agent_news import AgentNews
from fedstill.edge_client.privacy import upload_log
from fedstill.edge_client.privacy.privacy_policy import read_policy
from fedstill.edge_client.privacy.upload_log import LOG_FILE, in_words, note, read_log
from fedstill.edge_client.privacy.yearly_budget import spend_one
from fedstill.edge_client.students.expected import Expected, keep_expected
from fedstill.protos.messages import (
    EvaluationResult,
    Hello,
    InstallResult,
    Job,
    MissingDependency,
    PrototypeRequest,
    PrototypeUpload,
    Student,
)

JOB = Job("latency_insensitive", "fedstill", 0, 0)
NAMES = ("calm", "happy")
STUDENT = Student(np.zeros(1, np.uint8), "{}", NAMES, "ab" * 32)
CARD = np.array([1, *[0] * 169], np.uint8)
VERSION = "cd" * 32


def asked(kind: str, **options: object) -> PrototypeRequest:
    return PrototypeRequest(JOB, STUDENT, kind, 3, 3, 0, 1.0, **options)  # type: ignore[arg-type]


def sent(clips: int, rows: int = 1, card: bool = False) -> PrototypeUpload:
    counts = np.full(rows, clips // rows, np.int64)
    shares = np.tile(np.array([[0.25, 0.75]], np.float32), (rows, 1))
    empty = np.empty(0, np.float32)
    return PrototypeUpload(JOB, shares, counts, NAMES, empty, CARD if card else np.empty(0, np.uint8))


@pytest.mark.parametrize(
    ("request_", "answer", "words"),
    [
        (asked("histogram"), sent(40), "mean class probabilities and a histogram of confidences of 40 clips"),
        (asked("kmeans"), sent(40, 4), "4 mean rows of class probabilities of 40 clips"),
        (asked("samples"), sent(1), "the class probabilities of every clip of 1 clip"),
        (None, EvaluationResult(JOB, 3, 5, 0.1, 8), "how many of 5 labelled clips a student gets right"),
        (None, InstallResult(JOB, True, 1.0, "", VERSION), "that a student is in use now"),
        (None, InstallResult(JOB, False, 0.1, "disagrees", ""), "why a student is not used"),
        (
            None,
            InstallResult(JOB, True, 1.0, "", VERSION, ("2 empty", "1 missing")),
            "that a student is in use now, and that 3 clips cannot be used, by kind of fault",
        ),
        (None, Hello("a", "0.1.0", 0, change="clips"), "that many of its clips are new"),
        (None, Hello("a", "0.1.0", 0, change="drift"), "that its newer clips differ"),
        (None, MissingDependency("base", VERSION), "that base of a student must be sent"),
    ],
)
def test_an_answer_is_told_in_words(request_: object, answer: object, words: str) -> None:
    assert in_words(request_, answer) == words


def test_a_card_and_noise_are_told() -> None:
    assert in_words(asked("histogram", card=True), sent(40, card=True)).endswith(
        ", and how they were recorded"
    )
    centres = np.array([[0.5, 0.5]], np.float32)
    private = asked("dp", epsilon=4.0, delta=1e-5, centres=centres)
    assert in_words(private, sent(40)) == "1 rows of class probabilities with noise, epsilon 4 of 40 clips"


def test_lines_are_kept_in_order_and_a_cut_one_is_left_out(tmp_path: Path) -> None:
    note(tmp_path, asked("histogram"), sent(40), 508)
    note(tmp_path, None, InstallResult(JOB, True, 1.0, "", VERSION), 90)
    with (tmp_path / LOG_FILE).open("ab") as file:
        file.write(b'\xff\n{"time": 1.0, "wh')
    found = read_log(tmp_path)
    assert [one.bytes for one in found] == [508, 90]
    assert found[0].time <= found[1].time
    assert b"0.25" not in (tmp_path / LOG_FILE).read_bytes(), "the content is nobody's business"


def test_the_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_log, "MOST_BYTES", 1000)
    for size in range(100):
        note(tmp_path, None, InstallResult(JOB, True, 1.0, "", VERSION), size)
    kept = [one.bytes for one in read_log(tmp_path)]
    assert kept == list(range(kept[0], 100))
    assert 10 < len(kept) < 40
    assert sum(path.stat().st_size for path in tmp_path.glob(f"{LOG_FILE}*")) <= 2000


def test_the_owner_reads_it(tmp_path: Path) -> None:
    note(tmp_path, asked("histogram"), sent(40), 508)
    found = CliRunner().invoke(app, ["privacy", str(tmp_path), "--log"])
    assert found.exit_code == 0, found.output
    (line,) = [one for one in found.output.splitlines() if "508" in one]
    assert "a histogram of confidences of 40 clips" in line
    assert "in 0 private uploads" in CliRunner().invoke(app, ["privacy", str(tmp_path)]).output
    (tmp_path / "device" / "data").mkdir(parents=True)
    quiet = CliRunner().invoke(app, ["privacy", str(tmp_path / "device"), "--log"])
    assert "nothing is recorded here" in quiet.output
    stranger = CliRunner().invoke(app, ["privacy", str(tmp_path / "device" / "data"), "--log"])
    assert stranger.exit_code == 2


def test_the_agent_tells_what_happens_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    note(tmp_path, None, InstallResult(JOB, True, 1.0, "", VERSION), 1)
    news = AgentNews(tmp_path)
    news.look()
    assert caplog.messages == []
    (tmp_path / FORMAT_FILE).write_text("{}")
    note(tmp_path, asked("histogram"), sent(40), 508)
    shelf = tmp_path / SHELF_FOLDER
    shelf.mkdir()
    (shelf / f"{VERSION}.safetensors").touch()
    (shelf / "current.json").write_text(json.dumps({"current": VERSION, "previous": ""}))
    keep_expected(tmp_path, shelf, VERSION, Expected(0.8, 0.7449, 0.86))
    spend_one(tmp_path, read_policy(tmp_path), "job")
    for _ in range(3):
        news.look()
    assert caplog.messages == [
        "event=accepted by=coordinator",
        'event=sent bytes=508 what="mean class probabilities and a histogram of confidences of 40 clips"',
        "event=privacy_spent personalisations=1 of=52 days=365",
        f'event=student_arrived version={VERSION[:12]} before=none expected="80 % (74 % to 86 %)"',
    ]


def test_the_agent_says_once_that_it_is_accepted_however_often_it_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    news = AgentNews(tmp_path)
    for number, connection in enumerate((1.0, 1.0, 1.0, 2.0)):
        (tmp_path / FORMAT_FILE).write_text("{}")
        os.utime(tmp_path / FORMAT_FILE, ns=(number, number + 1))
        news.look(connection)
    assert caplog.messages == ["event=accepted by=coordinator"] * 2, "once for each SuperNode"
