"""Answered clips of the watched folder join the device's own: if its owner wants that, the newest ones, and no copy of
their files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.bad_files import write_good_clips
from helpers.command import CliRunner
from helpers.inference import CLASSES, VERSION, MadeRuntime, wait_until
from helpers.media import write_sound
from helpers.watching import Watching, land, picture

from fedstill.cli.main import app
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_to_json
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import META_FILE, ClipStore
from fedstill.edge_client.folder import CLIPS_FILE, FORMAT_FILE, JOINED_FOLDER, LEARNED_FOLDER
from fedstill.edge_client.inbox import joined_store, learned_clips
from fedstill.edge_client.inbox.learned_clips import ClipKeeper, clips_kept, kept, learn
from fedstill.edge_client.inference import current_student
from fedstill.edge_client.inference.current_student import CurrentStudent
from fedstill.edge_client.inference.finished_clips import archiving, delete
from fedstill.edge_client.node.agent_data import own_clips, use_clips
from fedstill.edge_client.node.change_check import find_change
from fedstill.edge_client.node.change_watch import CHECK_SECONDS, LEARNING_SECONDS, ChangeWatch
from fedstill.edge_client.node.known_clips import make_known
from fedstill.edge_client.owner.wipe import wipe_folder
from fedstill.protos.messages import CLIPS_CHANGED

FORMAT = ClipFormat(CLASSES, AudioSpec(seconds=0.5, mel_bins=8), FrameSpec(size=8, count=2))
OWN = 4


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device with four clips of its own, and the owner's word that it learns."""
    stored = SimpleNamespace(state={}, spec="", class_names=CLASSES, version=VERSION)
    monkeypatch.setattr(current_student, "ModelStore", lambda _: SimpleNamespace(current=lambda: stored))
    folder = tmp_path / "state"
    use_clips(write_good_clips(tmp_path / "clips", OWN), folder)
    (folder / FORMAT_FILE).write_text(format_to_json(FORMAT))
    learn(folder, True)
    return folder


def student_of(device: Path) -> CurrentStudent:
    def load(*_: object) -> Any:
        return MadeRuntime()

    return CurrentStudent(device, load, "local", 300.0, None)


def watching(device: Path, finish: Any = None) -> Watching:
    """As the agent with ``--learn-from inbox``."""
    student, keeper = student_of(device), ClipKeeper(device)
    student.classified = keeper.classified
    return Watching(device.parent, student.classify, finish=finish, answered_well=keeper.answered)


def answer(device: Path, path: Path) -> None:
    """One clip, as the watch does."""
    student, keeper = student_of(device), ClipKeeper(device)
    student.classified = keeper.classified
    student.classify(path)
    keeper.answered()


def pair(folder: Path, name: str, level: float = 0.1) -> Path:
    picture(folder / f"{name}.png")
    return write_sound(folder / f"{name}.wav", level=level)


def learned(store: ClipStore) -> list[str]:
    return [one.clip_id for one in store.info if one.clip_id.startswith(f"{LEARNED_FOLDER}/")]


def test_an_answered_clip_is_used_as_if_it_had_been_among_the_data(device: Path, tmp_path: Path) -> None:
    before = own_clips(device)
    assert (len(before), learned(before)) == (OWN, [])
    path = pair(tmp_path / "in", "walk")
    answer(device, path)
    store = own_clips(device)
    assert store.info[:OWN] == before.info
    np.testing.assert_array_equal(store.audio[:OWN], before.audio)
    (name,) = learned(store)
    clip = store.info[OWN]
    assert (clip.clip_id, clip.split, clip.label, clip.recording) == (name, "private", None, name)

    manifest = tmp_path / "in" / "manifest.csv"
    manifest.write_text("clip_id,split,speaker,label,audio,frames\nwalk,private,me,,walk.wav,walk.png\n")
    use_clips(manifest, tmp_path / "other")
    (tmp_path / "other" / FORMAT_FILE).write_text(format_to_json(FORMAT))
    same = own_clips(tmp_path / "other")
    np.testing.assert_allclose(store.audio[OWN], same.audio[0], atol=1e-4)  # by numpy, and perhaps by torch
    np.testing.assert_array_equal(store.frames[OWN], same.frames[0])
    assert store.profiles is not None
    assert same.profiles is not None
    np.testing.assert_allclose(store.profiles[OWN], same.profiles[0], rtol=1e-5)


@pytest.mark.parametrize("how", ["left", "archived", "deleted"])
def test_what_becomes_of_the_files_does_not_matter(how: str, device: Path, tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    finish = {"left": None, "archived": archiving(tmp_path / "done"), "deleted": delete}[how]
    with watching(device, finish) as inbox:
        land(inbox.folder / "one.mp4")
        (inbox.folder / "broken.mp4").write_bytes(b"no video")
        wait_until(lambda: len(inbox.lines) == 2)
        inbox.settle()
    shutil.rmtree(tmp_path / "in")
    assert len(learned(own_clips(device))) == 1, "and the bad one is no problem"
    content = b"".join(path.read_bytes() for path in (device / LEARNED_FOLDER).iterdir())
    assert b"one.mp4" not in content, "not even its name is kept"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (device / LEARNED_FOLDER).iterdir())


def test_a_clip_that_changed_while_it_was_read_is_not_kept(device: Path, tmp_path: Path) -> None:
    inbox = watching(device)
    classify, calls = inbox.classify, []

    def changing(path: Path) -> dict[str, Any]:
        found = classify(path)
        calls.append(path)
        if len(calls) == 1:
            write_sound(path, seconds=0.7)
            assert kept(device) == learned_clips.Kept(0, 0)
        return found

    inbox.classify = changing
    pair(inbox.folder, "walk")
    with inbox:
        wait_until(lambda: len(inbox.lines) == 1)
        inbox.settle()
    assert len(calls) == 2
    assert len(learned(own_clips(device))) == 1


def test_the_same_clip_counts_once_and_a_restart_forgets_nothing(device: Path, tmp_path: Path) -> None:
    first, second = pair(tmp_path / "in", "walk"), pair(tmp_path / "in", "talk", level=0.3)
    shutil.copy(first, first.with_name("again.wav"))
    shutil.copy(first.with_suffix(".png"), first.with_name("again.png"))
    for path in (first, second, first.with_name("again.wav"), first):
        answer(device, path)
    before = learned(own_clips(device))
    assert len(before) == 2
    assert learn(device, True) == kept(device)
    assert learned(own_clips(device)) == before


def test_the_newest_clips_stay_within_number_and_disk(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(learned_clips, "MOST_CLIPS", 3)
    for number in range(5):
        answer(device, pair(tmp_path / "in", f"n{number}", level=0.05 * (1 + number)))
        (new,) = {path.name for path in clips_kept(device)} - set(names)
        names.append(new)
        os.utime(device / LEARNED_FOLDER / new, (1000 + number,) * 2)  # ticks of a file system are long
    assert {path.name for path in clips_kept(device)} == set(names[-3:])
    size = (device / LEARNED_FOLDER / names[-1]).stat().st_size
    monkeypatch.setattr(learned_clips, "MOST_BYTES", 2 * size)
    answer(device, pair(tmp_path / "in", "last", level=0.5))
    found = kept(device)
    assert found is not None
    assert (found.clips, found.bytes <= 2 * size) == (2, True)
    assert len(learned(own_clips(device))) == 2


def test_a_clock_that_goes_back_makes_no_new_clip_the_oldest(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned_clips, "MOST_CLIPS", 2)
    for number in range(2):
        answer(device, pair(tmp_path / "in", f"n{number}", level=0.05 * (1 + number)))
    old = clips_kept(device)
    for path in old:
        os.utime(path, (2e9, 2e9))
    for number in (2, 3):
        answer(device, pair(tmp_path / "in", f"n{number}", level=0.05 * (1 + number)))
    assert not set(clips_kept(device)) & set(old)


def test_other_people_s_files_are_neither_clips_nor_deleted(device: Path, tmp_path: Path) -> None:
    answer(device, pair(tmp_path / "in", "walk"))
    for name in ("thesis.docx", "large.npz"):
        (device / LEARNED_FOLDER / name).write_text("mine")
    assert kept(device) is not None
    assert len(clips_kept(device)) == 1
    learn(device, False)
    assert {path.name for path in (device / LEARNED_FOLDER).iterdir()} == {"thesis.docx", "large.npz"}
    assert len(own_clips(device)) == OWN


def test_without_the_owner_s_word_nothing_is_kept_and_what_was_is_forgotten(
    device: Path, tmp_path: Path
) -> None:
    answer(device, pair(tmp_path / "in", "walk"))
    assert len(own_clips(device)) == OWN + 1
    cut_short = device / f".{JOINED_FOLDER}.77.draft"  # a process was killed while it joined them
    cut_short.mkdir()
    assert learn(device, False) is not None, "the agent says so"
    assert not any((device / name).exists() for name in (LEARNED_FOLDER, JOINED_FOLDER, cut_short.name))
    assert len(own_clips(device)) == OWN
    assert (learn(device, False), kept(device)) == (None, None)


def test_another_format_and_damaged_files_are_left_out(
    device: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        answer(device, pair(tmp_path / "in", f"n{number}", level=0.05 * (1 + number)))
    one, other, _ = clips_kept(device)
    one.write_bytes(one.read_bytes()[:100])
    key = other.name.partition("-")[0]
    with (device / LEARNED_FOLDER / f"{key}-0000.npz").open("wb") as file:
        np.savez(
            file, audio=np.zeros((3, 3), np.float32), frames=np.zeros(3, np.uint8), profile=np.zeros(169)
        )
    assert len(learned(own_clips(device))) == 2
    assert caplog.messages == ["event=learned_clips_left_out count=2"]
    other_format = ClipFormat(CLASSES, AudioSpec(seconds=0.7, mel_bins=8), FrameSpec(size=8, count=2))
    (device / FORMAT_FILE).write_text(format_to_json(other_format))
    assert len(own_clips(device)) == OWN


def test_a_clip_that_makes_way_while_others_are_joined_is_joined_too(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        answer(device, pair(tmp_path / "in", f"n{number}", level=0.05 * (1 + number)))
    require_room = joined_store._require_room

    def meanwhile(*given: Any) -> None:
        clips_kept(device)[0].unlink()
        require_room(*given)

    monkeypatch.setattr(joined_store, "_require_room", meanwhile)
    assert len(own_clips(device)) == OWN + 3


def test_a_full_disk_costs_the_clip_and_not_its_answer(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(learned_clips, "replace_file", full)
        answer(device, pair(tmp_path / "in", "walk"))
    assert 'event=clip_not_kept reason="No space left on device"' in caplog.messages
    assert kept(device) == learned_clips.Kept(0, 0)
    answer(device, tmp_path / "in" / "walk.wav")
    with monkeypatch.context() as patch:
        patch.setattr("fedstill.edge_client.inbox.joined_store.put_in_place", full)
        assert len(own_clips(device)) == OWN, "the device answers with what it has"
    with monkeypatch.context() as patch:
        patch.setattr(joined_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
        assert len(own_clips(device)) == OWN, "it would be killed while it writes"
    assert len(own_clips(device)) == OWN + 1


def test_a_damaged_store_is_made_anew(device: Path, tmp_path: Path) -> None:
    answer(device, pair(tmp_path / "in", "walk"))
    own_clips(device)
    for name in ("audio.npy", "index.csv", META_FILE):
        (device / JOINED_FOLDER / name).write_bytes(b"{}")
        assert len(own_clips(device)) == OWN + 1


def test_nothing_is_written_anew_while_nothing_changes(device: Path, tmp_path: Path) -> None:
    answer(device, pair(tmp_path / "in", "walk"))
    own_clips(device)
    meta = device / JOINED_FOLDER / META_FILE
    before = meta.stat().st_mtime_ns
    own_clips(device)
    assert meta.stat().st_mtime_ns == before
    use_clips(write_good_clips(tmp_path / "more", OWN + 1), device)
    assert len(own_clips(device)) == OWN + 2
    assert meta.stat().st_mtime_ns != before


def test_learned_clips_are_new_clips(device: Path, tmp_path: Path) -> None:
    make_known(device, "job", own_clips(device))
    now, checks = [0.0], []
    watch = ChangeWatch(device, 0.25, lambda *given: checks.append(given[:2]), lambda: now[0])
    watch.look(threading.Event())
    now[0] += LEARNING_SECONDS
    watch.look(threading.Event())
    assert len(checks) == 1
    answer(device, pair(tmp_path / "in", "walk"))
    watch.look(threading.Event())
    assert len(checks) == 2, "the agent notices"
    answer(device, pair(tmp_path / "in", "walk", level=0.4))
    now[0] += CHECK_SECONDS
    watch.look(threading.Event())
    assert len(checks) == 2, "but does not write all clips every hour"
    now[0] += LEARNING_SECONDS
    watch.look(threading.Event())
    assert len(checks) == 3
    assert find_change(device, 0.75, lambda *_: None) == ""  # type: ignore[arg-type,return-value]
    assert find_change(device, 0.5, lambda *_: None) == CLIPS_CHANGED  # type: ignore[arg-type,return-value]


def test_nothing_is_left_of_them_on_a_device_that_is_given_away(device: Path, tmp_path: Path) -> None:
    answer(device, pair(tmp_path / "in", "walk"))
    own_clips(device)
    (device / f".{JOINED_FOLDER}.7.draft").mkdir()  # as a kill leaves it
    assert wipe_folder(device) == []
    assert not device.exists()


def test_the_owner_is_told(device: Path, tmp_path: Path) -> None:
    answer(device, pair(tmp_path / "in", "walk"))
    runner = CliRunner()
    told = " ".join(runner.invoke(app, ["privacy", str(device)]).output.split())
    assert (
        "answered clips of the watched folder join its clips: 1 of at most 256, 0.0 of at most 100 MB" in told
    )
    found = json.loads(runner.invoke(app, ["agent", "status", "--state", str(device), "--json"]).output)
    assert found["clips"]["learned"] == 1
    learn(device, False)
    assert "watched folder" not in runner.invoke(app, ["privacy", str(device)]).output


def test_learning_needs_a_watched_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = tmp_path / "state"
    command = [
        "agent",
        "--coordinator",
        "127.0.0.1:1",
        "--insecure",
        "--client",
        "0",
        "--data",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, [*command, "--state", str(state), "--learn-from", "inbox"])
    assert done.exit_code == 2
    assert "--learn-from inbox: only with --watch" in done.output
    assert not (state / CLIPS_FILE).exists()
