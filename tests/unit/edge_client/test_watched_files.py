"""Every file in a watched folder is answered or said: equal names, what phones write, and what is no clip."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.inference import wait_until
from helpers.media import write_sound, write_video
from helpers.sound_files import encoded_by_ffmpeg, noise
from helpers.watching import Watching, land, picture
from PIL import Image

from fedstill.common.errors import DataError
from fedstill.edge_client.inference import finished_clips, left_out, watch
from fedstill.edge_client.inference.clip_files import read_clip
from fedstill.edge_client.inference.finished_clips import archiving
from fedstill.edge_client.inference.left_out import LEFT_OUT_SECONDS, LeftOut


def phone_sound(codec: str, form: str, rate: int) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(encoded_by_ffmpeg(noise(1, rate), codec, form, rate))
        return picture(path.with_suffix(".jpg"))

    return write


FORMATS: dict[str, Callable[[Path], Path]] = {
    ".m4a": phone_sound("aac", "ipod", 44_100),
    ".opus": phone_sound("libopus", "ogg", 48_000),
    ".aac": phone_sound("aac", "adts", 44_100),
    ".mov": write_video,
    ".3gp": write_video,
    ".ts": write_video,
    ".MOV": write_video,
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_phones_write_is_a_clip(suffix: str, tmp_path: Path) -> None:
    FORMATS[suffix](tmp_path / f"clip{suffix}")
    clip = read_clip(tmp_path / f"clip{suffix}", 2)
    assert 0.9 < len(clip.audio) / clip.sample_rate < 2.2
    assert clip.frames.shape[0] == 2


def test_a_heic_picture_belongs_to_its_sound(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    write_sound(tmp_path / "clip.wav")
    heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(tmp_path / "clip.HEIC")
    assert read_clip(tmp_path / "clip.wav", 1).frames.shape == (1, 64, 64, 3)


def test_a_picture_of_one_pixel_is_no_picture(tmp_path: Path) -> None:
    write_sound(tmp_path / "clip.wav")
    Image.new("RGB", (1, 1)).save(tmp_path / "clip.png")
    with pytest.raises(DataError, match="1 x 1 pixels, which shows nothing"):
        read_clip(tmp_path / "clip.wav", 1)


def test_films_of_one_name_are_two_clips_and_so_are_two_sounds_with_one_picture(tmp_path: Path) -> None:
    folder, archive = tmp_path / "in", tmp_path / "archive"
    archive.mkdir()
    write_video(folder / "a.mkv")
    write_video(folder / "a.mp4")
    picture(folder / "b.png")
    write_sound(folder / "b.wav")
    write_sound(folder / "b.flac")
    with Watching(tmp_path, finish=archiving(archive)) as watching:
        wait_until(lambda: not list(folder.iterdir()))
    assert {line["clip"] for line in watching.lines} == {"a.mkv", "a.mp4", "b.flac", "b.wav"}
    assert not [line for line in watching.lines if "error" in line]
    assert {path.name for path in archive.iterdir()} == {"a.mkv", "a.mp4", "b.flac", "b.wav", "b.png"}


def test_what_will_never_be_answered_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_out, "LEFT_OUT_SECONDS", 0.1)
    monkeypatch.setattr(watch, "FULL_LOOK_SECONDS", 0.05)
    folder = tmp_path / "in"
    picture(folder / "pictures" / "1.png")
    picture(folder / "lone.jpg")
    write_sound(folder / "alone.m4a.wav")
    (folder / "notes.txt").write_text("no clip")
    (folder / "x.mp4.part").write_bytes(b"half")
    (folder / "named.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    for system in (".hidden.mp4", "Thumbs.db", "._a.png"):
        (folder / system).write_bytes(b"x")
    with Watching(tmp_path) as watching:
        land(folder / "a.mp4")
        picture(folder / "a.png")
        wait_until(lambda: watching.lines)
        wait_until(lambda: len(said(caplog)) == 9)
        watching.settle()
        picture(folder / "alone.m4a.png")
        wait_until(lambda: len(watching.lines) == 2)
        watching.settle()
    reasons = dict(said(caplog))
    assert len(said(caplog)) == len(reasons) == 9, "each once"
    for name, reason in {
        "pictures": "a folder: of pictures, it needs a sound file pictures.wav",
        "lone.jpg": "a picture without sound: put lone.wav beside it",
        "alone.m4a.wav": "a sound without pictures: put alone.m4a.jpg or alone.m4a.mp4 beside it",
        "notes.txt": "no ending of a sound, a video or a picture (.txt)",
        "x.mp4.part": "(.part)",
        "named.mp4": "a folder",
        "pipe.mp4": "no file, but a pipe",
        "loop.mp4": "cannot be looked at (",
        "a.png": "beside a clip of the same name",
    }.items():
        assert reason in reasons[name]
    assert [line["clip"] for line in watching.lines] == ["a.mp4", "alone.m4a.wav"]


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """(file, reason) of each line."""
    found = []
    for record in caplog.records:
        if isinstance(record.args, tuple) and "event=left_out" in record.getMessage():
            found.append((json.loads(str(record.args[0])), json.loads(str(record.args[1]))))
    return found


def test_a_file_that_grows_is_not_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, seen = tmp_path / "film.mp4.part", LeftOut()

    def look(now: float) -> int:
        seen.look({file.name: file}, frozenset(), now)
        return len(said(caplog))

    with caplog.at_level(logging.WARNING):
        for minute in range(5):
            file.write_bytes(bytes(minute))
            assert look(minute * LEFT_OUT_SECONDS) == 0
        assert look(5 * LEFT_OUT_SECONDS) == 1
        assert look(6 * LEFT_OUT_SECONDS) == 1


def test_files_of_a_clip_stay_together_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, archive = tmp_path / "in", tmp_path / "archive"
    archive.mkdir()
    finish = archiving(archive)
    for _ in range(2):
        picture(folder / "x.y" / "1.png")
        finish((write_sound(folder / "x.y.wav"), folder / "x.y"))
        finish((write_sound(folder / "v.1.wav"), picture(folder / "v.1.jpg")))
    names = {"x.y.wav", "x.y", "v.1.wav", "v.1.jpg"}
    assert {path.name for path in archive.iterdir()} == names | {
        "x.y-2.wav",
        "x.y-2",
        "v.1-2.wav",
        "v.1-2.jpg",
    }
    move = shutil.move

    def full(source: Path, target: Path) -> Any:
        if source.suffix == ".jpg":
            raise OSError(28, "No space left on device")
        return move(source, target)

    monkeypatch.setattr(finished_clips.shutil, "move", full)
    with pytest.raises(OSError, match="No space"):
        finish((write_sound(folder / "z.wav"), picture(folder / "z.jpg")))
    assert {path.name for path in folder.iterdir()} == {"z.wav", "z.jpg"}
    assert not (archive / "z.wav").exists()


def test_a_name_that_is_used_again_and_again_costs_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    finish, asked, is_taken = archiving(archive), [0], finished_clips._is_taken

    def counting(targets: list[Path]) -> bool:
        asked[0] += 1
        return is_taken(targets)

    monkeypatch.setattr(finished_clips, "_is_taken", counting)
    for _ in range(40):
        (tmp_path / "cam.mp4").touch()
        finish((tmp_path / "cam.mp4",))
    assert len(list(archive.iterdir())) == 40
    assert asked[0] < 3 * 40


def test_a_finished_clip_costs_no_look_at_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, at_call = [0], []
    real = watch._look
    monkeypatch.setattr(
        watch, "_look", lambda listing: (looks.__setitem__(0, looks[0] + 1), real(listing))[1]
    )
    (folder := tmp_path / "in").mkdir()
    for number in range(12):
        (folder / f"{number}.mp4").write_bytes(b"clip")

    def classify(path: Path) -> dict[str, Any]:
        at_call.append(looks[0])
        return {}

    with Watching(tmp_path, classify) as watching:
        wait_until(lambda: len(watching.lines) == 12)
    assert len(set(at_call)) == 1
