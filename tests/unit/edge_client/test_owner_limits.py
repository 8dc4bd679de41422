"""The owner's yearly budget, the lock of the student, and files of the owner that are no usable ones."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.command import CliRunner
from helpers.recorded_clips import noisy_store
from test_privacy import clips, dp_request

from fedstill.cli.agent.parts import Infer, student_of
from fedstill.cli.main import app
from fedstill.edge_client.folder import ALLOWED_FILE, DATA_FOLDER, KEEP_FILE, SHELF_FOLDER
from fedstill.edge_client.node.change_note import ChangeNote, announced, mark_of
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.node.known_clips import make_known, read_known_clips
from fedstill.edge_client.node.student_lock import require_change_allowed
from fedstill.edge_client.owner.agent_status import _limits
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedstill.edge_client.privacy.privacy_policy import (
    POLICY_FILE,
    PrivacyPolicy,
    allow,
    read_policy,
    write_policy,
)
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.privacy.yearly_budget import (
    AT_ONCE,
    YEAR,
    may_announce,
    next_announcement,
    spend_one,
    spent_in_a_year,
)
from fedstill.edge_client.students.pointer import POINTER, student_file
from fedstill.edge_client.students.students import ModelStore
from fedstill.protos.messages import CLIPS_CHANGED, PrototypeRequest

CLIPS, YEARLY = 20, 3
VERSION = "a" * 64


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    noisy_store(tmp_path / DATA_FOLDER, "abcde", CLIPS)
    monkeypatch.setattr(Device, "_probabilities", lambda *_: clips(CLIPS))
    return Device(tmp_path, None)  # type: ignore[arg-type]


def asked(visit: int, outer_round: int = 0, kind: str = "histogram") -> PrototypeRequest:
    request = dp_request(min_size=8)
    if kind == "histogram":
        request = replace(
            request, kind=kind, epsilon=0.0, delta=0.0, centres=np.empty((0, 0), np.float32)
        )  # fmt: skip
    return replace(request, job=replace(request.job, arm=f"fedstill.visit.{visit}", round=outer_round))


def test_so_many_personalisations_a_year_whatever_they_ask(device: Device) -> None:
    write_policy(device.directory, PrivacyPolicy(yearly=YEARLY))
    for visit in range(YEARLY):
        for outer_round in (0, 1, 1):  # the second question, and one that is repeated
            device.prototypes(asked(visit, outer_round))
    before = read_known_clips(device.directory)
    for kind in ("histogram", "dp"):
        with pytest.raises(
            DeviceError, match=r"yearly budget: 3 of 3 personalisations in 365 days are spent"
        ):
            device.prototypes(asked(YEARLY, kind=kind))
    assert read_known_clips(device.directory) == before, "nothing has become known"
    device.prototypes(asked(0, 1))
    assert spent_in_a_year(device.directory) == YEARLY
    assert not may_announce(device.directory, PrivacyPolicy(yearly=YEARLY))


def test_other_clips_under_the_name_of_before_count_again(device: Device) -> None:
    """The cloud chooses the name."""
    device.prototypes(asked(0))
    noisy_store(device.directory / DATA_FOLDER, "vwxyz", CLIPS + 1)
    Device(device.directory, None).prototypes(asked(0))  # type: ignore[arg-type]
    assert spent_in_a_year(device.directory) == 2


def test_a_ledger_that_lost_power_in_an_upload_can_be_read(device: Device) -> None:
    """SQLite rolls the half upload back at the next look, which therefore must be allowed to write."""
    spend_one(device.directory, read_policy(device.directory), "first")
    path = device.directory / LEDGER_FILE
    cut_off = """
import os, sqlite3, sys
ledger = sqlite3.connect(sys.argv[1], isolation_level=None)
ledger.execute("PRAGMA cache_size = 1")
ledger.execute("BEGIN IMMEDIATE")
for number in range(2000):
    ledger.execute("INSERT INTO personalisations VALUES (?, 1e12)", (f"half {number}",))
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", cut_off, str(path)], check=True)
    journal = path.with_name(f"{path.name}-journal")
    assert journal.stat().st_size > 0
    assert spent_in_a_year(device.directory) == 1
    assert not journal.exists()


def test_changes_are_announced_over_the_whole_year(device: Device) -> None:
    """A device whose clips always change is not silent for ten months after two."""
    policy, told = PrivacyPolicy(), 0
    with sqlite3.connect(device.directory / LEDGER_FILE) as ledger:
        ledger.execute("CREATE TABLE personalisations (job TEXT PRIMARY KEY, time REAL NOT NULL)")
    for day in range(365):
        with sqlite3.connect(device.directory / LEDGER_FILE) as ledger:  # a day passes
            ledger.execute("UPDATE personalisations SET time = time - 86400")
        if may_announce(device.directory, policy):
            spend_one(device.directory, policy, f"day {day}")
            told += day >= 180
    assert 20 <= told <= 27, "of 52, in the second half of the year"


def test_the_owner_is_told_from_when_on_changes_are_told(device: Device) -> None:
    policy, begun = PrivacyPolicy(), time.time()
    for job in range(AT_ONCE):
        assert next_announcement(device.directory, policy) is None
        spend_one(device.directory, policy, f"job {job}")
    again = next_announcement(device.directory, policy)
    assert again == pytest.approx(begun + AT_ONCE * YEAR / 52, abs=60)
    told = _limits({"most": "x", "yearly": 52, "this_year": 3, "changes_from": again, "spent": 0.0})
    assert f"other clips are told of from {datetime.fromtimestamp(again):%Y-%m-%d}" in told
    with sqlite3.connect(device.directory / LEDGER_FILE) as ledger:
        ledger.execute("UPDATE personalisations SET time = time - ?", (AT_ONCE * YEAR / 52,))
    assert next_announcement(device.directory, policy) is None
    assert next_announcement(device.directory, PrivacyPolicy(yearly=None)) is None
    for job in range(49):
        spend_one(device.directory, policy, f"more {job}")
    all_spent = next_announcement(device.directory, policy)
    assert all_spent == pytest.approx(begun + (1 - AT_ONCE / 52) * YEAR, abs=60), (
        "until the first is a year ago"
    )


@pytest.mark.parametrize("yearly", [1, 2])
def test_an_owner_who_lowered_the_limit_is_told_no_later_day_than_the_right_one(
    yearly: int, device: Device
) -> None:
    for job in range(AT_ONCE):
        spend_one(device.directory, PrivacyPolicy(), f"job {job}")
    again = next_announcement(device.directory, PrivacyPolicy(yearly=yearly))
    assert again == pytest.approx(time.time() + YEAR, abs=60)


def test_a_damaged_time_in_the_ledger_is_one_line(device: Device) -> None:
    for job in range(AT_ONCE):
        spend_one(device.directory, PrivacyPolicy(), f"job {job}")
    with sqlite3.connect(device.directory / LEDGER_FILE) as ledger:
        ledger.execute("UPDATE personalisations SET time = 'yesterday' WHERE job = 'job 1'")
    with pytest.raises(DeviceError, match="is damaged"):
        next_announcement(device.directory, PrivacyPolicy())


def test_what_was_not_answered_is_not_counted(device: Device) -> None:
    write_policy(device.directory, PrivacyPolicy(min_size=CLIPS + 1))
    with pytest.raises(DeviceError, match="fewer than the minimum"):
        device.prototypes(asked(0))
    assert spent_in_a_year(device.directory) == 0


@pytest.mark.parametrize(
    ("age", "counts"), [(0.9 * YEAR, True), (1.1 * YEAR, False), (-YEAR, True)], ids=["old", "older", "ahead"]
)
def test_a_year_is_365_days_and_a_clock_that_was_ahead_gives_nothing(
    age: float, counts: bool, device: Device
) -> None:
    policy = PrivacyPolicy(yearly=1)
    spend_one(device.directory, policy, "before")
    with sqlite3.connect(device.directory / LEDGER_FILE) as ledger:
        ledger.execute("UPDATE personalisations SET time = ?", (time.time() - age,))
    assert may_announce(device.directory, policy) is not counts
    if counts:
        with pytest.raises(DeviceError, match=r"the next one is possible on \d{4}-\d\d-\d\d"):
            spend_one(device.directory, policy, "now")
    else:
        spend_one(device.directory, policy, "now")


def test_a_simulated_device_of_before_has_no_limit(device: Device) -> None:
    """A long simulation goes on after an upgrade: its devices' files do not name the budget."""
    (device.directory / POLICY_FILE).write_text('{"accepts": "samples", "epsilon": null, "noise_seed": 0}')
    policy = read_policy(device.directory)
    for job in range(60):
        spend_one(device.directory, policy, f"job {job}")
    assert may_announce(device.directory, policy)


def test_who_looks_neither_changes_the_ledger_nor_waits_for_who_writes(device: Device) -> None:
    path = device.directory / LEDGER_FILE
    spend_one(device.directory, PrivacyPolicy(), "one")
    before = path.read_bytes()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert spent_in_a_year(device.directory) == 1
        assert PrivacyLedger(path, 8.0, 1e-5).spent() == 0
        other.execute("ROLLBACK")
    assert path.read_bytes() == before


def test_no_limit_and_a_damaged_ledger(device: Device) -> None:
    spend_one(device.directory, PrivacyPolicy(yearly=None), "one")
    assert not (device.directory / LEDGER_FILE).exists()
    (device.directory / LEDGER_FILE).write_bytes(b"no database" * 100)
    with pytest.raises(DeviceError, match="ledger"):
        device.prototypes(asked(0))
    with pytest.raises(ValueError, match="yearly: 0 is below 1"):
        PrivacyPolicy(yearly=0)


def test_the_owner_reads_how_many_there_were(device: Device) -> None:
    device.prototypes(asked(0))
    told = " ".join(CliRunner().invoke(app, ["privacy", str(device.directory)]).output.split())
    assert "told of its clips for 1 personalisations in 365 days, of 52" in told


def use_student(device: Device) -> None:
    shelf = device.directory / SHELF_FOLDER
    shelf.mkdir()
    (shelf / POINTER).write_text(json.dumps({"current": VERSION, "previous": ""}))
    student_file(shelf, VERSION).touch()


def test_a_device_that_keeps_its_student_tells_nothing_and_asks_for_nothing(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = device.directory
    (folder / KEEP_FILE).touch()
    device.prototypes(asked(0))  # it has none yet
    use_student(device)
    make_known(folder, "job", device.store)
    ChangeNote(mark_of(folder), CLIPS_CHANGED).write(folder)
    assert announced(folder) == ""
    with pytest.raises(DeviceError, match="keeps its student; nothing is uploaded or installed"):
        device.prototypes(asked(1))
    with pytest.raises(DeviceError, match="keeps its student"):
        device.evaluate(None)  # type: ignore[arg-type]
    monkeypatch.setattr(ModelStore, "student", lambda *_: SimpleNamespace(version="b" * 64))
    with pytest.raises(DeviceError, match="keeps its student"):
        device.install(SimpleNamespace(student=None))  # type: ignore[arg-type]
    require_change_allowed(folder, VERSION)  # the reply to its installation was lost, and it is asked again
    (folder / KEEP_FILE).unlink()
    assert announced(folder) == CLIPS_CHANGED
    device.prototypes(asked(1))


def test_a_device_with_a_bad_policy_answers_clips_and_sends_no_features(tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).write_text("{")
    assert not student_of(tmp_path, None, Infer.LOCAL, 300.0).uploads_allowed
    (tmp_path / POLICY_FILE).write_text("{}")
    assert student_of(tmp_path, None, Infer.LOCAL, 300.0).uploads_allowed


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"accepts": "dp", "accepts": "samples"}', "accepts is there twice"),
        ('{"epsilon": 1, "delta": 1e-5, "epsilon": 900}', "epsilon is there twice"),
        ('{"accepts\\n\\n": "dp"}', "unknown key"),
    ],
)
def test_a_file_that_says_two_things_or_odd_ones_is_one_line(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).write_text(content)
    with pytest.raises(DeviceError) as refused:
        read_policy(tmp_path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_link_to_nothing_is_not_the_same_as_no_file(tmp_path: Path) -> None:
    assert read_policy(tmp_path).accepts == "histogram"
    (tmp_path / POLICY_FILE).symlink_to(tmp_path / "on a disk that is not mounted")
    with pytest.raises(DeviceError, match="is a link to nothing; nothing is uploaded"):
        read_policy(tmp_path)
    with pytest.raises(DeviceError, match="decides here"):
        allow(tmp_path, "samples")


def test_a_folder_where_the_word_is_kept_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ALLOWED_FILE).mkdir()
    for what in ("", "samples"):
        with pytest.raises(DeviceError, match="is a folder, where --allow is kept: remove it"):
            allow(tmp_path, what)


def test_fewer_clips_than_a_mean_needs_say_what_to_do(device: Device) -> None:
    """Files of an older fedstill, which allowed groups of four."""
    (device.directory / POLICY_FILE).write_text('{"clips": 5}')
    with pytest.raises(
        DeviceError, match=r'"clips" 5 is below "min_size" 8.*raise "clips" or lower "min_size"'
    ):
        device.prototypes(asked(0))
    assert 'raise "clips" or lower' in read_policy(device.directory).in_words
    (device.directory / POLICY_FILE).write_text('{"clips": 5, "min_size": 5}')
    assert device.prototypes(asked(0)).counts.sum() == CLIPS  # the probabilities here are those of all clips
