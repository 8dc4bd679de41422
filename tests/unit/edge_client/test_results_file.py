"""The lines about watched clips in a file: whole, bounded, and none is lost where the disk is full."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from helpers.command import CliRunner
from helpers.inference import wait_until
from helpers.watching import POLL, classify, land

from fedstill.cli.agent.app import _watching
from fedstill.cli.main import app
from fedstill.common import atomic_files
from fedstill.edge_client.inference import watch
from fedstill.edge_client.inference.current_student import CurrentStudent
from fedstill.edge_client.inference.results_file import ResultsFile
from fedstill.edge_client.inference.watch import run_watch
from fedstill.edge_client.inference.watch_log import WatchError, WatchLog
from fedstill.edge_client.node.loading import _load_nothing


def names(path: Path) -> list[str]:
    return [json.loads(line)["clip"] for line in path.read_text().splitlines()]


def test_it_is_put_aside_before_it_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    out = ResultsFile(path, most_bytes=100)
    lines = [json.dumps({"clip": str(number)}) + "\n" for number in range(20)]
    for line in lines:
        out.write(line)
    assert path.stat().st_size <= 100
    kept = (path.with_name("clips.jsonl.1").read_text() + path.read_text()).splitlines(keepends=True)
    assert kept == lines[-len(kept) :]
    path.unlink()  # whoever reads it may take it away
    out.write(lines[0])
    assert path.read_text() == lines[0]


@pytest.mark.parametrize(
    ("torn", "whole"),
    [
        ('{"clip": "a"}\n{"cl', '{"clip": "a"}\n'),
        ('{"clip": "a"}\n{"clip": "b", "cl', '{"clip": "a"}\n'),
        ('{"cl', ""),
        ("", ""),
        ("to do: milk", "to do: milk\n"),
        ('{"clip": "a"}\n{"b": 1}', '{"clip": "a"}\n{"b": 1}\n'),
    ],
)
def test_what_a_kill_left_of_a_line_goes_and_nothing_else(torn: str, whole: str, tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text(torn)
    ResultsFile(path)
    assert path.read_text() == whole


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    """Nothing can be forced to disk there, so no line would count."""
    path = tmp_path / "results"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(WatchError, match="results: is no file, which results need"):
        ResultsFile(path)
    with pytest.raises(WatchError, match="/dev/null: is no file"):
        ResultsFile(Path("/dev/null"))


def test_a_full_disk_loses_no_clip_and_tears_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inbox, path, stop, write = tmp_path / "in", tmp_path / "clips.jsonl", threading.Event(), os.write
    left = [10]  # bytes

    def nearly_full(handle: int, content: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        count = write(handle, content[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(watch, "FULL_SECONDS", POLL)
    monkeypatch.setattr(atomic_files.os, "write", nearly_full)
    inbox.mkdir()
    arguments = classify, inbox, tmp_path / "state", ResultsFile(path), stop, POLL
    thread = threading.Thread(target=run_watch, args=arguments)
    thread.start()
    try:
        land(inbox / "one.mp4")
        said = 'event=results_not_written clip="one.mp4" reason="No space left on device"'
        wait_until(lambda: said in caplog.messages)
        assert path.read_text() == ""
        left[0] = 1_000_000
        wait_until(lambda: path.read_text())
    finally:
        stop.set()
        thread.join(30)
    assert names(path) == ["one.mp4"]


def test_what_cannot_be_noted_is_noted_with_the_next_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write

    def torn(handle: int, content: bytes) -> int:
        if len(content) < 10:
            raise OSError(28, "No space left on device")
        return write(handle, content[:-5])

    known = WatchLog(tmp_path)
    known.add("zero.mp4", (), "0")
    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.os, "write", torn)
        known.add("one.mp4", (), "1")
        known.add("two.mp4", (), "2")
    assert caplog.messages[0] == 'event=clip_not_noted clip="one.mp4" reason=No space left on device'
    assert known.has("one.mp4")
    assert not WatchLog(tmp_path).has("one.mp4")
    known.add("three.mp4", (), "3")
    again = WatchLog(tmp_path)
    assert [again.has(f"{name}.mp4") for name in ("zero", "one", "two", "three")] == [True] * 4


def test_results_need_a_watched_folder(tmp_path: Path) -> None:
    command = ["agent", "--coordinator", "127.0.0.1:1", "--insecure", "--client", "0", "--results", "x.jsonl"]
    done = CliRunner().invoke(app, [*command, "--data", str(tmp_path), "--state", str(tmp_path / "state")])
    assert (done.exit_code, "--results: only with --watch" in done.output) == (2, True)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("place", ["in", "in/done", "link/done"])
def test_nothing_of_ours_lies_in_the_watched_folder(place: str, tmp_path: Path) -> None:
    """Every look at it would look there, too."""
    (tmp_path / "in" / "done").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    folder, student = tmp_path / place, CurrentStudent(tmp_path, _load_nothing, "local", 300.0, None)
    rest = tmp_path / "in", tmp_path / "state"
    with pytest.raises(WatchError, match="lies in the watched folder: archive elsewhere"):
        _watching(student, *rest, folder, False, None, None)
    with pytest.raises(WatchError, match="lies in the watched folder: write the results elsewhere"):
        _watching(student, *rest, None, False, folder / "clips.jsonl", None)

    with pytest.raises(WatchError, match="lies in the agent's own folder: write the results elsewhere"):
        _watching(student, *rest, None, False, tmp_path / "state" / "privacy.json", None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b'{"clip": "a"}\n{"clip": "b"}',
            b'{"clip": "a"}\n{"clip": "b"}\n',
        ),  # an editor ends a file like this
        (b'{"clip": "somebody else"}', b'{"clip": "somebody else"}\n'),
        (b'{"clip": "a"}\n{"clip": "b", "cl', b'{"clip": "a"}\n'),
        (b'{"clip": "a"}\n', b'{"clip": "a"}\n'),
    ],
)
def test_a_whole_last_line_stays(before: bytes, after: bytes, tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_bytes(before)
    ResultsFile(tmp_path / "clips.jsonl")
    assert (tmp_path / "clips.jsonl").read_bytes() == after
