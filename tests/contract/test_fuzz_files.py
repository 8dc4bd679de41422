"""Guards the reading of files against anything: mutated ones of every format are read or refused in one line.

What comes back is a result of the right kind, or a DataError that begins with the file's path. No decoder ends the
process, nothing hangs, and no header makes a reader ask for memory that the file cannot fill. ``make fuzz`` goes on
where this stops and writes ``docs/results/fuzz.md``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.fuzz_formats import FORMATS
from helpers.fuzz_process import fuzz

MUTATED = 22  # of each format: 1,562 files
LONGEST = 10.0  # s of processor time for one file; they take milliseconds
MOST_MEMORY = 10**9  # bytes, libraries included
ROOMS = sorted({form.room for form in FORMATS.values()})


@pytest.mark.parametrize("room", ROOMS)
def test_a_mutated_file_is_read_or_refused_in_one_line(room: str) -> None:
    reports = fuzz({name: MUTATED for name, form in FORMATS.items() if form.room == room})
    assert [fault for report in reports.values() for fault in report.faults] == []
    for name, report in reports.items():
        assert report.read + report.named.total() == MUTATED
        assert report.named.total() > 0, name
        assert report.slowest < LONGEST, name
        assert 0 < report.memory < MOST_MEMORY, name


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_mutated_is_read_otherwise(tmp_path: Path, name: str) -> None:
    form = FORMATS[name]
    form.read(tmp_path / name, form.content)


def test_every_fault_is_seen() -> None:
    names = ("crash", "hang", "other_error", "wrong_result", "no_path", "named", "greedy", "read")
    reports = fuzz(dict.fromkeys(names, 1), "helpers.fuzz_bad_formats", patience=5.0)
    assert {name: report.faults for name, report in reports.items() if report.faults} == {
        "crash": ["crash, number 0: ended its process with -11"],
        "hang": ["hang, number 0: no answer in 5 s"],
        "other_error": ["other_error, number 0: KeyError: 'label'"],
        "wrong_result": ["wrong_result, number 0: AssertionError: "],
        "no_path": [
            "no_path, number 0: not one line that begins with the path: 'cannot be read: download it again'"
        ],
    }
    assert reports["greedy"].memory - reports["named"].memory > 2e8
    assert reports["read"].read == reports["greedy"].read == 1
    assert reports["named"].named == {"our own check": 1}
