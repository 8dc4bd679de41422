"""When a device says that its clips have changed: by its own clips, seldom tested, and only if its owner wants it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store, open_store
from fedstill.edge_client.folder import CHANGE_FILE, CLIPS_FILE, DATA_FOLDER, KNOWN_CLIPS_FILE
from fedstill.edge_client.node import change_check
from fedstill.edge_client.node.change_check import find_change
from fedstill.edge_client.node.change_note import ChangeNote, announced, mark_of, read_note
from fedstill.edge_client.node.change_watch import CHECK_SECONDS, ChangeWatch, check_in_process
from fedstill.edge_client.node.drift import Drift
from fedstill.edge_client.node.known_clips import known_from_now, make_known
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, PrivacyLedger, may_release_again
from fedstill.edge_client.privacy.privacy_policy import POLICY_FILE, PrivacyPolicy, write_policy
from fedstill.edge_client.privacy.prototypes import DeviceError, Prototypes
from fedstill.protos.messages import CLIPS_CHANGED, DRIFTED

NAMES = ("calm", "angry")


class Numbered:
    """Clips whose sound and picture are their number."""

    name, class_names = "numbered", NAMES

    def __init__(self, numbers: Sequence[int], prefix: str = "clip") -> None:
        self.numbers = tuple(numbers)
        self.index = tuple(ClipInfo(f"{prefix}{number}", "private", "ann", None) for number in numbers)

    def load(self, position: int) -> Clip:
        number = self.numbers[position]
        frames = np.full((1, 8, 8, 3), number, np.uint8)
        return Clip(self.index[position], np.full((3, 5), number, np.float32), frames, 0)


def record(folder: Path, numbers: Sequence[int], prefix: str = "clip") -> None:
    """Make these the clips of the device."""
    source = Numbered(numbers, prefix)
    spec = AudioSpec(), FrameSpec(size=8, count=1, channels=1)
    build_store(source, range(len(numbers)), *spec, folder / DATA_FOLDER)


def no_student(*_: object) -> Any:
    raise AssertionError("no student is needed")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device whose student was made for 100 clips."""
    record(tmp_path, range(100))
    make_known(tmp_path, "job", open_store(tmp_path / DATA_FOLDER))
    return tmp_path


def look(device: Path, share: float = 0.25) -> str:
    return find_change(device, share, no_student)


def test_a_share_of_new_clips_is_a_change(device: Path) -> None:
    record(device, range(105))
    assert look(device) == ""
    record(device, range(124))
    assert look(device) == ""
    record(device, range(125))
    assert (look(device), announced(device)) == (CLIPS_CHANGED, CLIPS_CHANGED)


def test_the_share_is_the_owners(device: Path) -> None:
    record(device, range(110))
    assert look(device, 0.11) == ""
    assert look(device, 0.1) == CLIPS_CHANGED


def test_clips_that_made_way_for_others_count(device: Path) -> None:
    record(device, range(30, 101))
    assert look(device) == CLIPS_CHANGED


def test_fewer_clips_are_no_reason_and_neither_are_other_names(device: Path) -> None:
    record(device, range(50))
    assert look(device) == ""
    record(device, range(100), prefix="renamed")
    assert look(device) == ""


def test_a_name_that_is_used_again_is_a_new_clip(device: Path) -> None:
    store = open_store(device / DATA_FOLDER)
    sound = np.load(store.directory / "audio.npy")
    sound[:30] += 0.5
    np.save(store.directory / "audio.npy", sound)
    assert look(device) == CLIPS_CHANGED


def test_another_version_may_compute_clips_otherwise(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedstill.edge_client.node.known_clips.version", lambda _: "99.0.0")
    store = open_store(device / DATA_FOLDER)
    sound = np.load(store.directory / "audio.npy")
    np.save(store.directory / "audio.npy", sound + np.float32(1e-3))
    assert look(device) == "", "their names are known"
    record(device, range(130))
    assert look(device) == CLIPS_CHANGED


def test_what_was_found_counts_until_another_student_is_made(device: Path) -> None:
    record(device, range(130))
    assert look(device) == CLIPS_CHANGED
    make_known(device, "next job", open_store(device / DATA_FOLDER))
    assert (announced(device), look(device)) == ("", "")


def test_nothing_is_known_before_the_first_student(tmp_path: Path) -> None:
    record(tmp_path, range(10))
    assert (look(tmp_path), announced(tmp_path)) == ("", "")


@pytest.mark.parametrize("content", ["", "[]", '{"known": 3}', '{"clips": [[]]}', '{"clips": 1, "job": 2}'])
def test_damaged_notes_are_as_none(device: Path, content: str) -> None:
    record(device, range(130))
    (device / CHANGE_FILE).write_text(content)
    assert announced(device) == ""
    assert look(device) == CLIPS_CHANGED
    (device / KNOWN_CLIPS_FILE).write_text(content)
    assert (announced(device), look(device)) == ("", "")


def test_the_owner_decides(device: Path) -> None:
    record(device, range(130))
    write_policy(device, PrivacyPolicy(changes=False))
    assert look(device) == ""
    write_policy(device, PrivacyPolicy())
    assert look(device) == CLIPS_CHANGED
    write_policy(device, PrivacyPolicy(changes=False))
    assert announced(device) == ""
    (device / POLICY_FILE).write_text("{")
    assert announced(device) == ""
    with pytest.raises(DeviceError, match=POLICY_FILE):
        look(device)


def test_a_spent_budget_asks_for_nothing(device: Path) -> None:
    rows = Prototypes(np.ones((1, 1), np.float32), np.ones(1, np.int64))
    policy = PrivacyPolicy(epsilon=8.0)
    assert may_release_again(device, policy)
    ledger = PrivacyLedger(device / LEDGER_FILE, policy.epsilon, policy.delta)
    ledger.release("one", "", 1.1, lambda: rows)
    assert may_release_again(device, policy)
    ledger.release("two", "", 1.1, lambda: rows)
    assert not may_release_again(device, policy)
    assert may_release_again(device, PrivacyPolicy(epsilon=None))
    record(device, range(130))
    write_policy(device, policy)
    assert look(device) == ""
    write_policy(device, PrivacyPolicy(epsilon=None))
    assert look(device) == CLIPS_CHANGED


class Student:
    """Any."""

    state, spec, class_names, version = {}, "", NAMES, "1"

    def features(self, audio: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return audio[:, 0, :2]

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return np.full((len(logits), 2), 0.5, np.float32)


def test_drift_is_tested_for_seldom_and_each_time_more_strictly(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[float] = []

    def drift(*given: Any) -> Drift:
        levels.append(given[4])
        return Drift(0.0, 0.0, 1.0, drifted=len(levels) == 3)

    monkeypatch.setattr(change_check, "drift_between", drift)
    monkeypatch.setattr(change_check, "student_in_use", lambda _: Student())
    looked = []
    for count in range(101, 160):
        record(device, range(count))
        found = find_change(device, 1.0, lambda *_: Student())  # type: ignore[arg-type, return-value]
        if len(levels) > len(looked):
            looked.append(count - 100)
    assert looked == [8, 16, 32]
    assert found == DRIFTED
    assert levels == pytest.approx([levels[0], levels[0] / 2, levels[0] / 4])
    assert read_note(device, mark_of(device)) == ChangeNote(mark_of(device), DRIFTED, 3, 32)


def drifted(device: Path, numbers: Sequence[int]) -> None:
    """These are its clips now, and the newer ones differ."""
    record(device, numbers)
    ChangeNote(mark_of(device), DRIFTED).write(device)


def summarised(device: Path, job: str = "next job") -> list[int]:
    """The clips of which a summary for this job tells."""
    known, used = known_from_now(device, job, open_store(device / DATA_FOLDER))
    known.write(device)
    return np.flatnonzero(used).tolist()


def test_after_drift_the_next_student_is_for_the_newer_clips(device: Path) -> None:
    drifted(device, range(110))
    assert summarised(device) == list(range(100, 110))
    assert summarised(device) == list(range(100, 110)), "asked again, it tells of the same ones"
    assert summarised(device, "a later job") == list(range(100, 110))
    record(device, range(120))
    assert summarised(device, "a still later job") == list(range(100, 120))
    drifted(device, range(130))
    assert summarised(device, "the last one") == list(range(120, 130))


def test_without_drift_all_clips_are_summarised(device: Path) -> None:
    record(device, range(130))
    assert look(device) == CLIPS_CHANGED
    assert summarised(device) == list(range(130))


def test_old_clips_count_again_if_the_newer_ones_go(device: Path) -> None:
    drifted(device, range(110))
    summarised(device)
    record(device, range(100))
    assert summarised(device, "a later job") == list(range(100))


def test_clips_left_behind_are_neither_new_nor_few(device: Path) -> None:
    drifted(device, range(110))
    summarised(device)
    assert look(device) == ""
    record(device, range(130))
    assert look(device) == "", "20 of 110"
    record(device, range(138))
    assert look(device) == CLIPS_CHANGED


def test_what_an_older_version_knew_is_understood(device: Path) -> None:
    content = json.loads((device / KNOWN_CLIPS_FILE).read_text())
    del content["left"]
    (device / KNOWN_CLIPS_FILE).write_text(json.dumps(content))
    assert look(device) == ""
    drifted(device, range(110))
    assert summarised(device) == list(range(100, 110))


def test_the_agent_looks_when_something_is_new_and_seldom(device: Path) -> None:
    now, checks = [0.0], []
    (device / CLIPS_FILE).write_text(json.dumps({"data": str(device / DATA_FOLDER)}))
    watch = ChangeWatch(device, 0.3, lambda *given: checks.append(given[:2]), lambda: now[0])
    stop = threading.Event()
    for _ in range(3):
        watch.look(stop)
        now[0] += CHECK_SECONDS
    assert checks == [(device, 0.3)], "once at the start"
    record(device, range(101))
    watch.look(stop)
    record(device, range(102))
    watch.look(stop)
    assert len(checks) == 2, "it waits"
    now[0] += CHECK_SECONDS
    watch.look(stop)
    watch.look(stop)
    assert len(checks) == 3
    (device / KNOWN_CLIPS_FILE).unlink()
    now[0] += CHECK_SECONDS
    watch.look(stop)
    assert len(checks) == 3, "there is no student yet"


def test_a_look_that_fails_is_a_line_in_the_log(device: Path, caplog: pytest.LogCaptureFixture) -> None:
    (device / POLICY_FILE).write_text("{")
    check_in_process(device, 0.25, threading.Event())
    (line,) = caplog.messages
    assert line.startswith("event=clips_unchecked reason=")
    assert POLICY_FILE in line


def test_a_look_ends_with_the_agent(device: Path, caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()
    stop.set()
    check_in_process(device, 0.25, stop)
    assert caplog.messages == []
