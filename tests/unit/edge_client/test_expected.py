"""The owner of a device reads what the cloud expects of the student in use, and never what it expects of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedstill.edge_client.folder import EXPECTED_FILE, SHELF_FOLDER
from fedstill.edge_client.students.expected import Expected, expected_of, keep_expected
from fedstill.edge_client.students.pointer import POINTER

FIRST, SECOND, THIRD = ("ab" * 32, "cd" * 32, "ef" * 32)
GOOD, BETTER = Expected(0.6, 0.5, 0.7), Expected(0.8, 0.75, 0.86)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    (tmp_path / SHELF_FOLDER).mkdir()
    return tmp_path


def use(device: Path, current: str, previous: str = "") -> None:
    (device / SHELF_FOLDER / POINTER).write_text(json.dumps({"current": current, "previous": previous}))


def keep(device: Path, version: str, expected: Expected | None) -> None:
    keep_expected(device, device / SHELF_FOLDER, version, expected)


def test_a_student_that_is_refused_takes_nothing_from_the_one_in_use(device: Path) -> None:
    keep(device, FIRST, GOOD)
    use(device, FIRST)
    keep(device, SECOND, BETTER)  # and then it fails on the canary clips
    assert (expected_of(device, FIRST), expected_of(device, SECOND)) == (GOOD, BETTER)
    keep(device, THIRD, None)
    assert (expected_of(device, FIRST), expected_of(device, SECOND)) == (GOOD, None)
    keep(device, FIRST, BETTER)
    assert expected_of(device, FIRST) == BETTER, "the same student, for other clips"
    keep(device, FIRST, None)
    assert expected_of(device, FIRST) is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"%s": 1}', '{"%s": [1, 2]}', '{"%s": ["a", "b", "c"]}', '{"%s": [0.5, 0.9, 0.8]}',
     '{"%s": [NaN, 0, 1]}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_note_is_as_if_there_were_none(content: str, device: Path) -> None:
    (device / EXPECTED_FILE).write_text(content.replace("%s", FIRST))
    assert expected_of(device, FIRST) is None
    keep(device, FIRST, GOOD)
    assert expected_of(device, FIRST) == GOOD


def test_a_full_disk_keeps_no_student_away(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedstill.edge_client.students.expected.replace_file", full)
    keep(device, FIRST, GOOD)
    assert expected_of(device, FIRST) is None
