"""A service gives a device a new student only where it is estimated better than the one in use, on the clips of now.

The real cloud and the real ClientApp. The networks of so small a run know nothing, so what the student in use says of
the judging speakers is put in its place: all right, or all wrong.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.command import CliRunner
from helpers.live_service import Running, run_of_a_service, service_of
from helpers.runs import copied_run

from fedstill.cli.main import app as cli
from fedstill.cloud_server.distillation import class_mix
from fedstill.cloud_server.distillation.candidates import OWN_STATISTICS, Candidate, Estimate, Training
from fedstill.cloud_server.federation import jobs, personal_student
from fedstill.cloud_server.federation.judging import Judging
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.student_in_use import StudentInUse
from fedstill.cloud_server.federation.worlds import Belief, World
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.cloud_server.journal.fleet_state import read_fleet
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.visit import KEPT, REQUESTED, SERVED
from fedstill.datasets.audiovisual.store import PROFILES_FILE
from fedstill.edge_client.folder import DATA_FOLDER, KNOWN_CLIPS_FILE
from fedstill.edge_client.node.upload_gate import Contacts
from fedstill.edge_client.students.expected import expected_of
from fedstill.models.audiovisual.network import AudioVisualNet

pytestmark = pytest.mark.slow

INSTALL, PROTOTYPES = "train.install", "query.prototypes"


@pytest.fixture(scope="module", autouse=True)
def chosen() -> Iterator[None]:
    """A rendered student is chosen though it is not surely better, and does on the device what was promised."""

    def the_first(estimates: tuple[Estimate, ...], tested: bool) -> Estimate | None:
        return next(iter(estimates), None)

    def only_rendered(rendered: bool, mix: object, *, prototypes: bool) -> Any:
        return (Candidate(Training(rendered=True)),)

    def the_card_is_believed(self: Belief, told: tuple[World, ...]) -> World:
        return told[0] if told else believed(self, told)  # sound and pictures

    believed = Belief.believed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_mix, "CLIPS_PER_NUMBER", 1)
        patch.setattr(personal_student, "best_of", the_first)
        patch.setattr(personal_student, "candidates_for", only_rendered)
        patch.setattr(Belief, "believed", the_card_is_believed)
        patch.setattr(jobs, "keeps_promise", lambda promised, found, left: True)
        yield


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a service that has given its device a rendered student."""
    trained = run_of_a_service(tmp_path_factory.mktemp("trained"), ("guard.test=true",))
    run_dir = copied_run(
        trained,
        tmp_path_factory.mktemp("served"),
        service=True,
        clients=1,
        devices=("hall",),
        reply_timeout=30.0,
        pause_scale=0.001,
    )
    with service_of(run_dir, [0]) as running:
        running.serve(0, 0)
        assert last_choice(running)["chosen"] == "rendered"
    return run_dir


@pytest.fixture
def running(served: Path, tmp_path: Path) -> Iterator[Running]:
    with service_of(copied_run(served, tmp_path, "lock"), [0]) as found:
        yield found


def last_choice(running: Running) -> dict[str, Any]:
    return [one for one in read_events(running.run_dir) if one["event"] == "job"][-1]["choice"]


def says(monkeypatch: pytest.MonkeyPatch, right: bool, seen: list[Judging] | None = None) -> None:
    """Of every clip of the judging speakers, the checked student in use decides so."""
    nets: list[AudioVisualNet] = []
    judged, logits_of = StudentInUse.judged, Judging.logits_of

    def noted(self: StudentInUse, cloud: SeedCloud) -> AudioVisualNet:
        nets.append(judged(self, cloud))
        return nets[-1]

    def says_so(self: Judging, net: AudioVisualNet) -> npt.NDArray[np.float32]:
        if not any(net is one for one in nets):
            return logits_of(self, net)
        if seen is not None:
            seen.append(self)
        classes = len(self._cloud.public.class_names)
        return np.eye(classes, dtype=np.float32)[(self.labels + (0 if right else 1)) % classes]

    monkeypatch.setattr(StudentInUse, "judged", noted)
    monkeypatch.setattr(Judging, "logits_of", says_so)


def test_trainings_are_told_while_they_go_on(served: Path) -> None:
    """The students of all devices, those that check them, and a device's own; no more often than every two seconds."""
    events = list(read_events(served))
    assert {"teacher_epoch", "all_distill_epoch", "fold_epoch"} <= {one["event"] for one in events}
    told = [one for one in events if one["event"] == "student_epoch"]
    assert told
    assert {(one["client"], one["visit"], one["candidate"], one["epochs"]) for one in told} == {
        (0, 0, "rendered", 1)
    }
    times = [one["time"] for one in told]
    assert all(later - earlier > 1.9 for earlier, later in itertools.pairwise(times))


def test_the_owner_is_told_what_the_operator_reads(running: Running) -> None:
    choice, student = last_choice(running), running.newest()[0].student
    expected = expected_of(running.run_dir / "devices" / "0", student)
    assert expected is not None
    assert (expected.accuracy, expected.low, expected.high) == (
        choice["estimate"],
        choice["low"],
        choice["high"],
    )


def test_a_student_that_is_not_better_stays_away_and_the_operator_is_told(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, right=True)
    before, asked, first = running.newest()[0], running.asked(0, INSTALL), last_choice(running)
    running.journal.visits.ask([0])
    kept = running.serve(0, 1, KEPT)
    assert (kept.cause, kept.student, kept.attempts) == (REQUESTED, before.student, 0)
    assert running.asked(0, INSTALL) == asked, "nothing is sent"
    assert kept.reason.startswith(
        "no student is estimated better than the one in use; the best, rendered, at -"
    )
    running.look_long()
    assert running.newest()[0] == kept, "it is not tried again before there is a cause"
    kinds = [(one["event"], one.get("outcome")) for one in read_events(running.run_dir)]
    assert ("all_served", None) in kinds[kinds.index(("visited", KEPT)) :]
    device = running.run_dir / "devices" / "0"
    running.until(
        lambda: not Contacts(device, 3600.0)._is_awaited(), "the device is told that it need not wait"
    )
    row = read_fleet(running.run_dir)["devices"][0]
    assert row["in_use"] == {"number": 1, "teacher": 1, "version": before.student}
    assert row["choice"]["estimate"] > first["estimate"], "what to expect of it is estimated again"
    told = " ".join(CliRunner().invoke(cli, ["status", "--state", str(running.run_dir)]).output.split())
    assert "keeps its student, 2 times (asked for)" in told
    assert f"device0: {kept.reason}" in told
    events = CliRunner().invoke(cli, ["fleet", "events", "--state", str(running.run_dir)]).output
    assert f"hall keeps its student: {kept.reason}" in events


def test_a_device_stays_from_the_beginning_of_its_visit(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first question may come late: others are before it, or all was told in an earlier visit that failed. A device
    that left meanwhile was never served: every contact began the same work again, and ended before it."""
    says(monkeypatch, right=False)
    device = running.run_dir / "devices" / "0"
    contacts = Contacts(device, 3600.0)
    long_ago = time.time() - 7 * 3600
    os.utime(device / KNOWN_CLIPS_FILE, (long_ago, long_ago))
    assert not contacts._is_awaited()
    running.grid.deaf.add((0, PROTOTYPES))  # as if it was not asked yet
    running.journal.visits.ask([0])
    running.until(contacts._is_awaited, "the device is told that a student is being made")
    running.grid.deaf.clear()
    running.serve(0, 1)
    assert not contacts._is_awaited(), "it has its student"


def test_the_student_in_use_is_judged_as_the_device_records_now(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was worth on the clips of then does not count: it would hold back a device that has changed."""
    seen: list[Judging] = []
    says(monkeypatch, right=False, seen=seen)
    first = running.newest()[0].student
    record_otherwise(running.run_dir)
    running.journal.visits.ask([0])
    served = running.serve(0, 1, SERVED)
    assert served.student != first
    before, now = (running.journal.upload(key_of(visit), jobs.SUMMARY) for visit in (0, 1))
    assert before is not None
    assert now is not None
    assert not np.array_equal(before.card, now.card)
    (judging,) = seen
    np.testing.assert_array_equal(judging._summary.card, now.card)
    assert judging._world.capture == "sound and pictures"
    assert last_choice(running)["reason"].endswith("as the device would record them")
    assert read_fleet(running.run_dir)["devices"][0]["in_use"]["number"] == 2


def key_of(visit: int) -> JobKey:
    return JobKey("latency_insensitive", "fedstill", 0, 0, visit=visit)


def record_otherwise(run_dir: Path) -> None:
    """Make the device's clips louder and lighter: another card."""
    store = run_dir / "devices" / "0" / DATA_FOLDER
    profiles = np.load(store / PROFILES_FILE)
    np.save(store / PROFILES_FILE, (profiles + 0.3 * np.nanmax(np.abs(profiles))).astype(np.float32))


def test_one_whose_promise_is_not_kept_on_the_clips_of_now_does_not_stay(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard asks the device about the student in use as about any other."""
    says(monkeypatch, right=True)
    monkeypatch.setattr(jobs, "keeps_promise", lambda promised, found, left: False)
    running.journal.visits.ask([0])
    running.serve(0, 1, SERVED)
    choice = last_choice(running)
    assert (choice["chosen"], choice["estimate"]) == ("generic", None)


def test_the_generic_student_once_more_is_no_new_one(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is installed again, because what goes with it is made for how the device records now."""
    monkeypatch.setattr(personal_student, "candidates_for", lambda *_, **__: ())
    says(monkeypatch, right=False)
    versions = []
    for visit in (1, 2):
        running.journal.visits.ask([0])
        versions.append(running.serve(0, visit, SERVED).student)
        assert last_choice(running)["chosen"] == "generic"
    assert versions[0] == versions[1]


def test_one_with_statistics_of_its_device_is_installed_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of the clips of then: kept without a word, it would go on with them in another room."""
    says(monkeypatch, right=True)
    opened = jobs.open_in_use

    def with_statistics(*known: Any) -> StudentInUse | None:
        found = opened(*known)
        return found and replace(found, name=f"{found.name}+{OWN_STATISTICS}")

    monkeypatch.setattr(jobs, "open_in_use", with_statistics)
    first = running.newest()[0].student
    running.journal.visits.ask([0])
    assert running.serve(0, 1, SERVED).student == first
    choice = last_choice(running)
    assert OWN_STATISTICS not in choice["chosen"]
    assert choice["reason"].startswith("no student is estimated better than the one in use")
