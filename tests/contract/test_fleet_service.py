"""A service gives devices that come and go their students: when they are new, lost it, were replaced, or failed before.

The real cloud and the real ClientApp, over a grid inside this process whose nodes come and go as the test says.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import RecordDict
from helpers.bad_files import add_bad_clips, write_good_clips
from helpers.command import CliRunner
from helpers.live_service import FIRST_NODE, Running, run_of_a_service, service_of
from helpers.runs import copied_run, silent_console

from fedstill.cli.main import app as cli
from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.cloud_server.federation.node_registry import NodeRegistry
from fedstill.cloud_server.federation.server_app import cloud_of_service
from fedstill.cloud_server.journal.event_log import Metrics, read_events
from fedstill.cloud_server.journal.fleet_state import read_fleet
from fedstill.cloud_server.journal.journal import Journal, open_journal
from fedstill.cloud_server.journal.visit import (
    FAILED,
    LOST,
    NEW,
    REFUSED,
    REPLACED,
    REQUESTED,
    SERVED,
    TEACHER,
    Visit,
)
from fedstill.common.export_manifest import DESCRIPTION
from fedstill.datasets.audiovisual.store import open_store
from fedstill.edge_client.folder import EXPORT_FOLDER, KEEP_FILE, SHELF_FOLDER
from fedstill.edge_client.node import loading
from fedstill.edge_client.node.agent_data import use_clips
from fedstill.edge_client.node.agent_news import AgentNews
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, read_policy, write_policy
from fedstill.edge_client.privacy.yearly_budget import spend_one
from fedstill.edge_client.students.runtime import ExportFolder
from fedstill.edge_client.students.runtime_api import LoadStudent
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.weights.checkpoint import load_checkpoint
from fedstill.models.weights.packing import pack
from fedstill.protos.messages import InstallResult
from fedstill.simulation.launcher import load_run
from fedstill.simulation.retrain import retrain

pytestmark = pytest.mark.slow

INSTALL = "train.install"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of_a_service(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return copied_run(
        trained,
        tmp_path,
        service=True,
        clients=2,
        devices=("hall", "kitchen"),
        reply_timeout=2.0,
        pause_scale=0.001,
    )


@pytest.fixture
def running(run_dir: Path) -> Iterator[Running]:
    with service_of(run_dir) as found:
        yield found


def test_each_device_is_served_when_it_comes_and_then_left_alone(running: Running) -> None:
    running.grid.here.add(0)
    first = running.serve(0, 0)
    assert (first.cause, first.device) == (NEW, "hall")
    running.look_long()
    assert set(running.newest()) == {0}
    running.grid.here.add(1)
    running.serve(1, 0)
    running.look_long()
    assert {client: one.visit for client, one in running.newest().items()} == {0: 0, 1: 0}
    for client in (0, 1):
        assert running.asked(client, INSTALL) >= 1
        assert running.asked(client, "evaluate.student") == 0, "a service needs no labels"
        assert running.newest()[client].student in [path.stem for path in students_of(running, client)]
    (said,) = [event for event in read_events(running.run_dir) if event["event"] == "all_served"]
    assert said["devices"] == 2


def students_of(running: Running, client: int) -> list[Path]:
    return sorted((running.run_dir / "devices" / str(client) / SHELF_FOLDER).glob("*.safetensors"))


def test_a_device_that_comes_back_keeps_its_student_and_one_without_files_gets_another(
    running: Running,
) -> None:
    running.grid.here.add(0)
    running.serve(0, 0)
    running.leave(0)
    running.grid.here.add(0)
    running.until(lambda: running.link(0) == "revived", "client 0 is back")
    running.look_long()
    assert running.newest()[0].visit == 0
    running.leave(0)
    shutil.rmtree(running.run_dir / "devices" / "0" / SHELF_FOLDER)
    running.grid.here.add(0)
    again = running.serve(0, 1)
    assert again.cause == LOST
    assert students_of(running, 0)


def test_a_replaced_device_and_one_that_is_asked_for_get_new_students(running: Running) -> None:
    running.grid.here |= {0, 1}
    running.serve(0, 0)
    running.serve(1, 0)
    running.grid.names[0] = "hall-2"
    write_plan(replace(read_plan(running.run_dir), devices=("hall-2", "kitchen")))
    assert running.serve(0, 1).cause == REPLACED
    running.journal.visits.ask([1])
    assert running.serve(1, 1).cause == REQUESTED
    running.look_long()
    assert {client: one.visit for client, one in running.newest().items()} == {0: 1, 1: 1}
    assert len({job for job, _, client in running.journal.uploaded() if client == 1}) == 2


def test_a_device_one_minor_version_ahead_is_served_and_one_further_ahead_is_told_what_to_upgrade(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, minor = map(int, version("fedstill").split(".")[:2])
    of_device = "fedstill.edge_client.node.client_app.version"
    monkeypatch.setattr(of_device, lambda _: f"{major}.{minor + 1}.0")
    running.grid.here.add(0)
    running.serve(0, 0)
    monkeypatch.setattr(of_device, lambda _: f"{major}.{minor + 2}.0")
    running.grid.here.add(1)
    running.until(lambda: refusals(running), "client 1 is refused")
    running.look_long()
    assert set(running.newest()) == {0}
    assert refusals(running)[0].endswith("upgrade the coordinator")
    told = " ".join(CliRunner().invoke(cli, ["status", "--state", str(running.run_dir)]).output.split())
    assert f"fedstill of the devices: {major}.{minor + 1}.0 on 1" in told


def refusals(running: Running) -> list[str]:
    return [str(one["reason"]) for one in read_events(running.run_dir) if one["event"] == "refused"]


def test_a_device_that_is_issued_later_and_one_that_is_revoked(running: Running) -> None:
    running.grid.here.add(0)
    write_plan(replace(read_plan(running.run_dir), clients=1, devices=("hall",)))
    running.serve(0, 0)
    running.grid.here.add(1)
    running.look_long()
    assert set(running.newest()) == {0}
    write_plan(replace(read_plan(running.run_dir), clients=2, devices=("hall", "kitchen")))
    running.serve(1, 0)
    write_plan(replace(read_plan(running.run_dir), clients=2, devices=("", "kitchen")))
    running.until(lambda: running.link(0) == "revoked", "client 0 is revoked")
    running.journal.visits.ask([0])
    running.look_long()
    assert running.newest()[0].visit == 0


def test_what_failed_is_tried_again_with_the_upload_that_is_there(running: Running) -> None:
    running.grid.here.add(0)
    running.grid.deaf.add((0, INSTALL))
    failed = running.serve(0, 0, FAILED)
    assert "no reply within" in failed.reason
    assert failed.attempts >= 1
    uploads = running.journal.uploaded()
    assert uploads
    running.grid.deaf.clear()
    served = running.serve(0, 0)
    assert (served.attempts, served.reason) == (0, "")
    assert running.journal.uploaded() == uploads, "nothing is asked twice"


def test_a_student_that_a_device_refuses_is_told_and_tried_anew(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            Device, "install", lambda self, request: InstallResult(request.job, False, 0.2, "2 of 10", "")
        )
        running.grid.here.add(0)
        refused = running.serve(0, 0, REFUSED)
    assert (refused.reason, refused.student) == ("2 of 10", "")
    running.look_long()
    assert running.newest() == {0: refused}
    again = replace(refused, started=refused.started - 2e5, ended=(refused.ended or 0) - 2e5)
    running.journal.visits._write(again)  # a day later
    assert running.serve(0, 1).cause == "refused before"


@pytest.mark.parametrize("how", ["keep-student", "yearly"])
def test_a_device_that_tells_nothing_keeps_the_student_that_it_has(how: str, running: Running) -> None:
    """It got the generic student before, as one that has none does."""
    running.grid.here.add(0)
    served, folder = running.serve(0, 0), running.run_dir / "devices" / "0"
    before, policy = read_policy(folder), PrivacyPolicy(yearly=1)
    if how == "yearly":
        write_policy(folder, policy)
        spend_one(folder, policy, "another job")
    else:
        (folder / KEEP_FILE).touch()
    installs = running.asked(0, INSTALL)
    running.journal.visits.ask([0])
    failed = running.serve(0, 1, FAILED)
    assert {"yearly": "yearly budget: 1 of 1", "keep-student": "keeps its student"}[how] in failed.reason
    assert (failed.student, running.asked(0, INSTALL)) == (served.student, installs)
    write_policy(folder, before)
    (folder / KEEP_FILE).unlink(missing_ok=True)
    assert running.serve(0, 1).reason == ""


def test_an_error_of_the_cloud_stops_one_visit_and_not_the_service(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedstill.cloud_server.federation.service.PersonalisationJob.run", broken)
        running.grid.here |= {0, 1}
        assert "No space left on device" in running.serve(0, 0, FAILED).reason
    running.serve(0, 0)
    running.serve(1, 0)


def test_a_superlink_that_dies_is_no_failure_of_the_device(running: Running) -> None:
    """The visit goes on where it was, at once and not after a pause."""
    running.grid.here.add(0)
    running.grid.closes_at = INSTALL
    running.until(lambda: running.grid.closed, "the SuperLink dies")
    running.look_long()
    assert running.outcome(0, 0) == ""
    uploads = running.journal.uploaded()
    running.grid.closes_at, running.grid.closed = "", False
    running.serve(0, 0)
    assert running.journal.uploaded() == uploads, "what the device has sent is not asked for again"
    assert not [event for event in read_events(running.run_dir) if event.get("outcome") == FAILED]


def test_a_look_that_fails_is_made_again(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, failures = threading.Event(), []
    look = running.service.look

    def failing() -> None:
        if len(failures) < 3:
            failures.append(True)
            raise OSError(5, "the database restarts")
        look()

    monkeypatch.setattr(running.service, "look", failing)
    monkeypatch.setattr("fedstill.cloud_server.federation.service.LOOK_SECONDS", 0.05)
    thread = threading.Thread(target=running.service.run, args=(stop,))
    thread.start()
    running.grid.here.add(0)
    limit = time.monotonic() + 60
    while running.outcome(0, 0) != SERVED and time.monotonic() < limit:
        time.sleep(0.05)
    stop.set()
    thread.join(60)
    assert len(failures) == 3
    assert running.outcome(0, 0) == SERVED


def test_a_service_that_was_ended_goes_on_where_it_was(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NodeRegistry, "_registered", lambda self, node: self.names[node - FIRST_NODE])
    with service_of(run_dir, [0]) as first:
        first.serve(0, 0)
    with open_journal_of(run_dir) as journal:  # killed while client 1 was being served
        journal.visits.begin(Visit(1, 0, NEW, "kitchen"))
    with service_of(run_dir, [0, 1]) as second:
        second.serve(1, 0)
        second.look_long()
        assert {client: one.visit for client, one in second.newest().items()} == {0: 0, 1: 0}


def test_after_another_teacher_each_device_gets_one_student_of_it_and_keeps_its_own_until_then(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NodeRegistry, "_registered", lambda self, node: self.names[node - FIRST_NODE])
    with service_of(run_dir, [0, 1]) as first:
        before = {client: first.serve(client, 0).student for client in (0, 1)}
        first.journal.visits.ask([1])
        first.grid.deaf.add((1, INSTALL))
        first.serve(1, 1, FAILED)
    experiment = load_run(run_dir)
    assert (
        retrain(run_dir, replace(experiment, teacher=replace(experiment.teacher, epochs=2)), silent_console())
        == 2
    )
    for moment in ("ordered", "made"):
        assert {row["in_use"]["version"] for row in read_fleet(run_dir)["devices"]} == set(before.values()), (
            moment
        )
        if moment == "ordered":
            make_teacher(run_dir)
    with service_of(run_dir, [0, 1]) as second:
        for client, visit in ((0, 1), (1, 2)):
            found = second.serve(client, visit)
            assert (found.cause, found.teacher) == (TEACHER, 2)
            assert found.student != before[client]
        second.look_long()
        assert {client: one.visit for client, one in second.newest().items()} == {0: 1, 1: 2}, "once"
        asked = [job for job, _, client in second.journal.uploaded() if client == 1]
        assert len(set(asked)) == 3, "what was told under the old teacher's student is not used"
    fleet = read_fleet(run_dir)
    assert [row["in_use"]["teacher"] for row in fleet["devices"]] == [2, 2]
    with open_journal_of(run_dir) as journal:
        digests = [
            load_checkpoint(folder / "seed0" / "teacher")[0]
            for folder in (run_dir, read_plan(run_dir).models)
        ]
        assert fleet["teacher"]["digest"] == digest_of(digests[1]) != digest_of(digests[0])
        assert not journal.teachers.note(2, "another")


def make_teacher(run_dir: Path) -> None:
    """As the coordinator's next start does."""
    metrics = Metrics(run_dir)
    with open_journal_of(run_dir) as journal:
        cloud_of_service(read_plan(run_dir), journal, metrics)
    metrics.close()


def digest_of(net: AudioVisualNet) -> str:
    return hashlib.sha256(pack(net.state_dict()).tobytes()).hexdigest()[:16]


def test_a_device_without_torch_gets_the_graphs_that_it_lacks(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.loader

    def small(folder: Path, *, one_thread: bool = True) -> LoadStudent:
        """Of a device on which torch is not installed."""
        return real(folder) if (folder / EXPORT_FOLDER / DESCRIPTION).exists() else loading._load_nothing

    monkeypatch.setattr(loading, "loader", small)
    running.grid.here.add(0)
    running.serve(0, 0)
    assert running.asked(0, "train.graphs") == 1
    export = ExportFolder.open(running.run_dir / "devices" / "0" / EXPORT_FOLDER)
    assert export.described.class_names == open_store(running.run_dir / "public").class_names
    assert not list((running.run_dir / "devices" / "0" / EXPORT_FOLDER).glob("*.safetensors")), "no weights"
    running.journal.visits.ask([0])
    running.serve(0, 1)
    assert running.asked(0, "train.graphs") == 1, "they are sent once"


def test_bad_clips_are_left_out_counted_and_not_named(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 100 clips, ten cannot be used: the others are, the coordinator has the kinds, and the owner the names."""
    faults: dict[str, str] = {}
    for client in (0, 1):
        manifest = write_good_clips(tmp_path / f"clips{client}", 90)
        faults = add_bad_clips(manifest)
        use_clips(manifest, run_dir / "devices" / str(client))
    with service_of(run_dir, [0, 1]) as running:
        for client in (0, 1):
            running.serve(client, 0)
            assert running.newest()[client].attempts == 0
        assert running.journal.failures() == []
        assert {row["clips"] for row in running.journal.privacy()} == {90}
        sent = [message.content for message in running.grid.outbound]
    assert not [content for content in sent if tells(content, "clips0", "clips1", "good", "fine", "bad ")]
    for client in (0, 1):
        row = read_fleet(run_dir)["devices"][client]
        assert row["bad_clips"] == dict(Counter(faults.values()))
        told = " ".join(CliRunner().invoke(cli, ["status", "--state", str(run_dir)]).output.split())
        assert (
            f"{row['name']}: 10 clips left out: file not found (1), a folder where a file should be (1)"
            in told
        )

        news = AgentNews(run_dir / "devices" / str(client))
        for _ in range(2):
            news.look()
        for clip_id in faults:
            said = [one.getMessage() for one in caplog.records if f'clip="{clip_id}" ' in one.getMessage()]
            assert len(said) == client + 1, "each agent says it once"
            assert f"clips{client}/" in said[-1]


def tells(content: RecordDict, *words: str) -> bool:
    """Whether a message holds any of these words, as text or in an array of bytes."""
    held = " ".join(str(value) for record in content.config_records.values() for value in record.values())
    held += " ".join(
        repr(array.data) for record in content.array_records.values() for array in record.values()
    )
    return any(word in held for word in words)


def test_a_device_without_a_usable_clip_says_so_without_a_name(run_dir: Path, tmp_path: Path) -> None:
    manifest = write_good_clips(tmp_path / "clips", 0)
    add_bad_clips(manifest)
    home = run_dir / "devices" / "0"
    use_clips(manifest, home)
    with service_of(run_dir, [0]) as running:
        failed = running.serve(0, 0, FAILED)
    assert "none of this device's clips can be used: file not found (1), " in failed.reason
    assert str(tmp_path) not in failed.reason
    assert "its own log says why" in failed.reason


@contextmanager
def open_journal_of(run_dir: Path) -> Iterator[Journal]:
    journal = open_journal(run_dir)
    yield journal
    journal.close()
