"""New clips in a folder: each once, also over restarts; nothing half-written, nothing silently left out."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers.inference import wait_until
from helpers.media import cut, write_sound, write_video
from helpers.watching import POLL, Watching, classify, land, picture

from fedstill.common.errors import DataError
from fedstill.edge_client.inference import watch
from fedstill.edge_client.inference.clip_files import clips_among, read_clip
from fedstill.edge_client.inference.finished_clips import archiving, delete
from fedstill.edge_client.inference.watch import infer_files, run_watch
from fedstill.edge_client.inference.watch_log import WatchError, WatchLog, digest_of


def test_every_new_clip_gets_one_line(tmp_path: Path) -> None:
    with Watching(tmp_path) as watching:
        land(watching.folder / "video.mp4")
        wait_until(lambda: len(watching.lines) == 1)
        picture(watching.folder / "pair.png")
        write_sound(tmp_path / "pair.wav").rename(watching.folder / "pair.wav")
        wait_until(lambda: len(watching.lines) == 2)
        watching.settle()
    assert [line["clip"] for line in watching.lines] == ["video.mp4", "pair.wav"]
    assert watching.lines[1] == {"clip": "pair.wav", "class": "calm", "samples": 16_000, "frames": 2}


def test_a_restart_repeats_nothing_and_catches_up(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_video(folder / "a.mp4")
    with Watching(tmp_path) as first:
        wait_until(lambda: first.lines)
    land(folder / "b.mp4")
    with Watching(tmp_path) as second:
        wait_until(lambda: second.lines)
        second.settle()
    assert [line["clip"] for line in (*first.lines, *second.lines)] == ["a.mp4", "b.mp4"]


def test_a_clip_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    content = write_video(tmp_path / "whole.mp4").read_bytes()
    part = len(content) // 20
    poll = 0.25  # looks that are much rarer than writes, also on a busy machine
    with Watching(tmp_path, poll=poll) as watching, (watching.folder / "slow.mp4").open("wb") as file:
        for start in range(0, len(content), part):
            file.write(content[start : start + part])
            file.flush()
            time.sleep(poll / 4)
        assert watching.lines == []
        wait_until(lambda: watching.lines)
    (line,) = watching.lines
    assert (line["clip"], line["class"], line["frames"]) == ("slow.mp4", "calm", 2)


def test_an_answer_about_a_clip_that_changed_meanwhile_does_not_count(tmp_path: Path) -> None:
    calls = []

    def slow(path: Path) -> dict[str, Any]:
        calls.append(path)
        if len(calls) == 1:
            write_video(path, frames=10)
        return {"call": len(calls)}

    with Watching(tmp_path, slow) as watching:
        land(watching.folder / "a.mp4")
        wait_until(lambda: watching.lines)
    assert watching.lines == [{"clip": "a.mp4", "call": 2}]


def test_temporary_and_unfinished_names_are_not_clips(tmp_path: Path) -> None:
    with Watching(tmp_path) as watching:
        whole = write_video(watching.folder / ".copying.mp4")
        write_sound(watching.folder / "alone.wav")
        (watching.folder / "notes.txt").write_text("no clip")
        (watching.folder / "x.mp4.part").write_bytes(b"half")
        (watching.folder / "alone").mkdir()
        watching.settle()
        assert watching.lines == []
        whole.rename(watching.folder / "done.mp4")
        picture(watching.folder / "alone" / "1.png")
        wait_until(lambda: len(watching.lines) == 2)
    assert {line["clip"] for line in watching.lines} == {"done.mp4", "alone.wav"}


def test_a_bad_clip_is_one_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    with Watching(tmp_path) as watching:
        cut(write_video(tmp_path / "bad.mp4"), 0.5).rename(watching.folder / "bad.mp4")
        (watching.folder / "empty.mp4").touch()
        wait_until(lambda: len(watching.lines) == 2)
        land(watching.folder / "good.mp4")
        wait_until(lambda: len(watching.lines) == 3)
        watching.settle()
    errors = {line["clip"]: line["error"] for line in watching.lines if "error" in line}
    assert set(errors) == {"bad.mp4", "empty.mp4"}
    assert "cannot decode" in errors["bad.mp4"]


def test_a_clip_that_breaks_the_program_does_not_end_the_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def break_once(path: Path) -> dict[str, Any]:
        return {"value": 1 // (path.name != "a.mp4")}

    with Watching(tmp_path, break_once) as watching:
        land(watching.folder / "a.mp4")
        land(watching.folder / "b.mp4")
        wait_until(lambda: len(watching.lines) == 2)
    assert {"clip": "b.mp4", "value": 1} in watching.lines
    assert "ZeroDivisionError" in next(line["error"] for line in watching.lines if "error" in line)
    assert "Traceback" in caplog.text


def test_the_watch_log_survives_a_torn_last_line(tmp_path: Path) -> None:
    clip = write_sound(tmp_path / "c\n.wav")
    look = (("c\n.wav", 1, 2),)
    WatchLog(tmp_path).add("a.mp4", look, digest_of([clip]))
    path = tmp_path / "watched.jsonl"
    path.write_bytes(path.read_bytes() + b'["b.m')
    answered = WatchLog(tmp_path)
    assert answered.knows("a.mp4", look, [clip])
    assert not answered.knows("b.mp4", look, [clip])
    answered.add("c\n.mp4", look, digest_of([clip]))
    assert WatchLog(tmp_path).knows("c\n.mp4", look, [clip])
    for damaged in (b"{damaged\n", b"7\n", b'["a"]\n'):
        path.write_bytes(damaged)
        with pytest.raises(WatchError, match="damaged: remove it"):
            WatchLog(tmp_path)


def test_names_that_an_older_fedstill_answered_stay_answered(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "watched.jsonl").write_text('"a.mp4"\n')
    write_video(tmp_path / "in" / "a.mp4")
    with Watching(tmp_path) as watching:
        land(watching.folder / "b.mp4")
        wait_until(lambda: watching.lines)
        watching.settle()
    assert [line["clip"] for line in watching.lines] == ["b.mp4"]


def test_a_name_with_another_content_is_another_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FULL_LOOK_SECONDS", 0.1)
    with Watching(tmp_path) as watching:
        clip = land(watching.folder / "a.mp4")
        wait_until(lambda: len(watching.lines) == 1)
        clip.touch()
        watching.settle()
        assert len(watching.lines) == 1, "the same content at another time is the same clip"
        write_video(tmp_path / "other.mp4", frames=10).rename(clip)
        wait_until(lambda: len(watching.lines) == 2)
        watching.settle()
    assert [line["clip"] for line in watching.lines] == ["a.mp4", "a.mp4"]


def test_a_clip_that_goes_while_it_is_noted_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(files: Iterable[Path]) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    with Watching(tmp_path) as watching:
        with monkeypatch.context() as patch:
            patch.setattr(watch, "digest_of", gone)
            land(watching.folder / "a.mp4")
            wait_until(lambda: len(watching.lines) == 1)
            watching.settle()
        land(watching.folder / "b.mp4")
        wait_until(lambda: len(watching.lines) == 2)
        watching.settle()
    assert [line["clip"] for line in watching.lines] == ["a.mp4", "b.mp4"]


def test_odd_things_in_a_folder_end_no_watch(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    picture(folder / "a" / "1.png")
    (folder / "a" / ".thumbnails").mkdir()
    write_sound(folder / "a.wav")
    (folder / "empty.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")

    def silent(path: Path) -> dict[str, Any]:
        raise ValueError

    with Watching(tmp_path, silent) as watching:
        wait_until(lambda: watching.lines)
        land(watching.folder / "b.mp4")
        wait_until(lambda: len(watching.lines) == 2)
        watching.settle()
    assert watching.lines == [
        {"clip": "a.wav", "error": "ValueError"},
        {"clip": "b.mp4", "error": "ValueError"},
    ]


def test_answered_clips_are_archived_without_losing_one(tmp_path: Path) -> None:
    (archive := tmp_path / "archive").mkdir()
    with Watching(tmp_path, finish=archiving(archive)) as watching:
        for times in (1, 2):
            picture(watching.folder / "pair.png")
            write_sound(tmp_path / "pair.wav", seconds=times).rename(watching.folder / "pair.wav")
            wait_until(lambda times=times: len(watching.lines) == times)  # type: ignore[misc]
            wait_until(lambda: not list(watching.folder.iterdir()))
    assert {path.name for path in archive.iterdir()} == {"pair.wav", "pair.png", "pair-2.wav", "pair-2.png"}
    with pytest.raises(WatchError, match="is no folder"):
        archiving(tmp_path / "absent")


def test_answered_clips_are_deleted_and_one_that_cannot_be_stays_answered(tmp_path: Path) -> None:
    def stuck(files: tuple[Path, ...]) -> None:
        raise OSError(13, "Permission denied")

    with Watching(tmp_path, finish=stuck) as watching:
        land(watching.folder / "a.mp4")
        wait_until(lambda: watching.lines)
        watching.settle()
        assert len(watching.lines) == 1
    with Watching(tmp_path, finish=delete) as watching:
        land(watching.folder / "b.mp4")
        (watching.folder / "c").mkdir()
        picture(watching.folder / "c" / "1.png")
        write_sound(tmp_path / "c.wav").rename(watching.folder / "c.wav")
        wait_until(lambda: len(watching.lines) == 2)
        wait_until(
            lambda: not list(watching.folder.iterdir())
        )  # what could not be deleted then is deleted now
        assert len(watching.lines) == 2


def test_a_folder_of_finished_clips_costs_next_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    real = watch._look
    monkeypatch.setattr(watch, "_look", lambda folder: (looks.append(folder), real(folder))[1])
    with Watching(tmp_path) as watching:
        land(watching.folder / "a.mp4")
        wait_until(lambda: watching.lines)
        watching.settle()
        before = len(looks)
        watching.settle()
        assert len(looks) - before <= 1
        land(watching.folder / "b.mp4")
        wait_until(lambda: len(watching.lines) == 2)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WatchError, match="is no folder"):
        run_watch(classify, tmp_path / "none", tmp_path / "state", io.StringIO(), threading.Event())


def test_a_folder_that_goes_away_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_video(folder / "a.mp4")

    def remove(path: Path) -> dict[str, Any]:
        shutil.rmtree(folder)
        return {}

    with pytest.raises(WatchError, match="is gone"):
        run_watch(remove, folder, tmp_path / "state", io.StringIO(), threading.Event(), POLL)


def test_named_clips_are_answered_in_order(tmp_path: Path) -> None:
    good, lone = write_video(tmp_path / "good.mp4"), write_sound(tmp_path / "lone.wav")
    out = io.StringIO()
    assert not infer_files(classify, [lone, good, tmp_path / "none.mp4"], out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["clip"] for line in lines] == ["lone.wav", "good.mp4", "none.mp4"]
    assert "beside the sound file" in lines[0]["error"]
    assert lines[1]["class"] == "calm"
    assert "no such file" in lines[2]["error"]
    assert infer_files(classify, [good], io.StringIO())


def test_sound_beside_a_video_belongs_to_it(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav", seconds=0.5)
    video = write_video(tmp_path / "a.mp4", sound=False)
    assert clips_among(tmp_path.iterdir()) == {"a.wav": (sound, video)}
    for name in (sound, video):
        assert len(read_clip(name, 3).audio) == 8000
    picture(tmp_path / "b.jpg")
    with pytest.raises(DataError, match="is no clip"):
        read_clip(tmp_path / "b.jpg", 1)
