"""Clips are answered by the device alone, and no connection stands, while nothing may be sent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.inference import CLASSES, VERSION, MadeRuntime
from PIL import Image

from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_to_json
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.edge_client.folder import FORMAT_FILE
from fedstill.edge_client.inference import current_student
from fedstill.edge_client.inference.cloud_inference import Mode, NoAnswer
from fedstill.edge_client.inference.cloud_stream import Address
from fedstill.edge_client.inference.current_student import CurrentStudent


class FakeConnection:
    """A link that is never up."""

    def __init__(self, *_: object) -> None:
        self.open = False
        MADE.append(self)

    description = None

    def start(self) -> None:
        self.open = True

    def close(self) -> None:
        self.open = False

    def wait(self, seconds: float) -> bool:
        return False

    def hindrance(self) -> str:
        return "link down (a test)"


MADE: list[FakeConnection] = []


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clip for the student that is in use."""
    MADE.clear()
    stored = SimpleNamespace(state={}, spec="", class_names=CLASSES, version=VERSION)
    monkeypatch.setattr(current_student, "ModelStore", lambda _: SimpleNamespace(current=lambda: stored))
    monkeypatch.setattr(current_student, "CloudConnection", FakeConnection)
    wanted = ClipFormat(CLASSES, AudioSpec(seconds=0.5), FrameSpec(size=28))
    (tmp_path / FORMAT_FILE).write_text(format_to_json(wanted))
    soundfile.write(tmp_path / "walk.wav", np.zeros(8000), 16_000)
    Image.new("RGB", (32, 32)).save(tmp_path / "walk.png")
    return tmp_path / "walk.wav"


def student_of(folder: Path, mode: Mode, closed: list[str]) -> CurrentStudent:
    def load(*_: object) -> Any:
        return MadeRuntime()

    return CurrentStudent(folder, load, mode, 300.0, Address("127.0.0.1:1", "hall"), closed=lambda: closed[0])


def standing() -> int:
    return sum(one.open for one in MADE)


def test_the_connection_ends_and_comes_back_by_itself(clip: Path) -> None:
    closed = [""]
    student = student_of(clip.parent, "auto", closed)
    assert student.classify(clip)["reason"] == "link down (a test)"
    student.tend()
    assert standing() == 1
    closed[0] = "outside the upload hours 22-6"
    student.tend()
    assert standing() == 0, "also if no clip comes"
    answer = student.classify(clip)
    assert (answer["path"], answer["reason"], standing()) == ("local", "local mode", 0)
    closed[0] = ""
    student.tend()
    student.classify(clip)
    student.classify(clip)
    assert (standing(), len(MADE)) == (1, 2)


def test_who_asks_the_cloud_alone_gets_no_answer_and_the_reason(clip: Path) -> None:
    closed = ["paused by the file pause"]
    student = student_of(clip.parent, "cloud", closed)
    with pytest.raises(NoAnswer, match="no answer from the cloud: paused by the file pause"):
        student.classify(clip)
    assert MADE == []


def test_who_never_asks_the_cloud_is_not_concerned(clip: Path) -> None:
    student = student_of(clip.parent, "local", ["paused"])
    assert student.classify(clip)["path"] == "local"
    student.tend()
    assert MADE == []
