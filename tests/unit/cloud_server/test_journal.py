"""Guards the journal: the first entry counts, even if it is repeated, in SQLite and in PostgreSQL alike."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fedstill.cloud_server.distillation.selection import Selection
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal, JournalError, PrivacyGuarantee
from fedstill.protos.messages import PrototypeUpload

KEY = JobKey("latency_sensitive", "fedstill", 1, 0)
NAMES = ("calm", "happy", "sad")


def upload(first: float) -> PrototypeUpload:
    rows = np.array([[first, 1 - first, 0]], np.float32)
    return PrototypeUpload(KEY.at(0), rows, np.array([7], np.int64), NAMES)


def test_the_first_upload_counts(journal: Journal) -> None:
    first = journal.accept_upload(KEY, 0, upload(0.5), PrivacyGuarantee("dp", 4.0, 1e-5))
    again = journal.accept_upload(KEY, 0, upload(0.25), PrivacyGuarantee("dp", 4.0, 1e-5))
    kept = journal.upload(KEY, 0)
    assert kept is not None
    for one in (first, again, kept):
        np.testing.assert_array_equal(one.probabilities, upload(0.5).probabilities)
        np.testing.assert_array_equal(one.counts, [7])
        assert one.class_names == NAMES
        assert one.job == KEY.at(0)
    assert journal.upload(KEY, 1) is None
    assert journal.uploaded() == [(KEY.text, 0, 1)]
    assert journal.privacy() == [
        {"job": KEY.text, "round": 0, "client": 1, "kind": "dp", "clips": 7, "epsilon": 4.0, "delta": 1e-5}
    ]


def test_many_at_once_accept_one(journal: Journal) -> None:
    offers = [upload(share) for share in np.linspace(0, 1, 12)]
    with ThreadPoolExecutor(12) as pool:
        kept = list(
            pool.map(lambda one: journal.accept_upload(KEY, 0, one, PrivacyGuarantee("histogram")), offers)
        )
    assert len({one.probabilities.tobytes() for one in kept}) == 1
    assert len(journal.uploaded()) == 1


def test_rounds_selections_jobs_and_students_are_written_once(journal: Journal) -> None:
    chosen = Selection(np.array([3, 1, 2], np.int64), np.array([1, 2, 0], np.float32))
    for losses in ([0.5], [0.1]):
        journal.select(KEY, 0, chosen)
        journal.finish_round(KEY, 0, losses, [1, 2, 0], "round0.safetensors")
        journal.finish_job(KEY, {"losses": losses, "evaluations": []})
        journal.keep_student(KEY, "ab" * 32, "students/x.safetensors", 12)
    (one,) = journal.rounds(KEY)
    assert (one.round, one.losses, one.class_counts, one.state_file) == (
        0,
        [0.5],
        [1, 2, 0],
        "round0.safetensors",
    )
    assert journal.jobs() == [{"losses": [0.5], "evaluations": []}]
    assert journal.students() == [
        {"job": KEY.text, "version": "ab" * 32, "file": "students/x.safetensors", "bytes": 12}
    ]
    found = journal.selection(KEY, 0)
    assert found is not None
    np.testing.assert_array_equal(found.positions, chosen.positions)
    np.testing.assert_array_equal(found.weights, chosen.weights)
    assert journal.selection(KEY, 1) is None


def test_a_job_that_goes_on_forgets_the_failures_of_its_open_rounds(journal: Journal) -> None:
    journal.fail(KEY, 0, {"round": 0})
    journal.finish_round(KEY, 1, [0.1], [1], "round1.safetensors")
    journal.fail(KEY, 2, {"round": 2})
    journal.forget_failures(KEY)
    assert journal.failures() == [{"round": 0}]


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    first = Journal(url)
    first.accept_upload(KEY, 0, upload(0.5), PrivacyGuarantee("histogram"))
    assert Journal(url).uploaded() == first.uploaded() == [(KEY.text, 0, 1)]


def test_a_new_file_that_another_process_is_filling_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("CREATE TABLE x (y)")
        other.execute("BEGIN IMMEDIATE")
        opening = pool.submit(Journal, f"sqlite:///{path}")
        time.sleep(0.2)
        other.execute("COMMIT")
        opening.result(20).close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:////nowhere/at/all/journal.db", "unable to open database file"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/x", "connection"),
        ("nonsense", "Could not parse"),
    ],
)
def test_an_unusable_journal_is_one_line_without_its_password(url: str, says: str) -> None:
    with pytest.raises(JournalError, match=says) as caught:
        Journal(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
