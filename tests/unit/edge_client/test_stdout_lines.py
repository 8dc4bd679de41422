"""The lines about watched clips on stdout: one per clip, also where the disk was full for a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedstill.edge_client.inference.stdout_lines import StdoutLines

FULL_FOR_A_WHILE = """
import logging, resource, sys, threading, time
from pathlib import Path
from types import SimpleNamespace

from fedstill.cli.agent.app import _watching
from fedstill.edge_client.folder import WATCHED_FILE
from fedstill.edge_client.inference import watch

class Tries(logging.Handler):
    def emit(self, record):
        tries.append(record.getMessage())

tries, (inbox, state) = [], map(Path, sys.argv[1:])
watch.POLL_SECONDS = watch.FULL_SECONDS = 0.02
watch.LOG.addHandler(Tries())
student = SimpleNamespace(wait=lambda stop: None, classify=lambda path: {"class": "calm"})
stop = threading.Event()
task = _watching(student, inbox, state, None, False, None, None)
most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20, most[1]))  # bytes of any file: a disk that is full
thread = threading.Thread(target=task, args=[stop])
thread.start()
while len(tries) < 3:
    time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_FSIZE, most)
while not (state / WATCHED_FILE).exists():
    time.sleep(0.01)
stop.set()
thread.join()
assert all("results_not_written" in one for one in tries), tries
"""


def test_a_full_disk_gets_one_line_per_clip(tmp_path: Path) -> None:
    """20 bytes are less than a line."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.wav").write_bytes(b"sound")
    (tmp_path / "in" / "one.png").write_bytes(b"picture")
    path = tmp_path / "clips.jsonl"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", FULL_FOR_A_WHILE, str(tmp_path / "in"), str(tmp_path / "state")]
    with path.open("wb") as stdout:
        subprocess.run(command, stdout=stdout, check=True, timeout=60, env=buffered)
    assert [json.loads(line)["clip"] for line in path.read_text().splitlines()] == ["one.wav"]


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_what_a_full_disk_let_through_is_taken_back(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shell's ``>`` and ``>>``."""
    path, write = tmp_path / "clips.jsonl", os.write

    def nearly_full(handle: int, content: bytes) -> int:
        if len(content) < 10:
            raise OSError(28, "No space left on device")
        return write(handle, content[:-5])

    with path.open(mode) as file:
        out = StdoutLines(file.fileno())
        out.write('{"clip": "zero"}\n')
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", nearly_full)
            with pytest.raises(OSError, match="No space left"):
                out.write('{"clip": "one"}\n')
        out.write('{"clip": "two"}\n')
    assert path.read_text() == '{"clip": "zero"}\n{"clip": "two"}\n'


def test_a_slow_reader_of_a_pipe_gets_whole_lines() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    line = json.dumps({"clip": "x" * 500_000}) + "\n"

    def write() -> None:
        StdoutLines(writing).write(line)
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading) as file:
        assert file.read() == line
    thread.join(30)
