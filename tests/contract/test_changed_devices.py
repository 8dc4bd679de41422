"""A device whose clips change gets another student, once, and nobody else does; its owner can keep that private."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command import CliRunner
from helpers.live_service import Running, run_of_a_service, service_of
from helpers.runs import copied_run

from fedstill.cli.main import app as cli
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.datasets.audiovisual.capture.captured import captured_clip
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.clip import Clip
from fedstill.datasets.audiovisual.store import build_store, open_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.edge_client.folder import DATA_FOLDER
from fedstill.edge_client.node.change_check import find_change
from fedstill.edge_client.node.change_note import announced
from fedstill.edge_client.node.change_watch import check_in_process
from fedstill.edge_client.node.loading import loader
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, write_policy
from fedstill.edge_client.privacy.upload_log import read_log
from fedstill.protos.messages import CLIPS_CHANGED, DRIFTED

pytestmark = pytest.mark.slow

NAMES = ("hall", "kitchen", "attic")
BEFORE, NEWER = 48, 11
"""Clips; eleven more are less than a quarter of them."""
SHARE = 0.25
PHONE = Condition("phone", "development", sound=(("white_noise", 1.5), ("low_pass", 1.0)))


class Recorded(SyntheticSource):
    """One device's clips: of some classes first, then perhaps of others, or with another microphone."""

    def __init__(self, seed: int, clips: Sequence[int], microphone: Condition | None = None) -> None:
        super().__init__(seed, public_per_class=0, private_per_class=60, private_speakers=2, frame_size=24)
        self.clips, self.microphone = clips, microphone

    def load(self, position: int) -> Clip:
        clip = super().load(position)
        changed = self.microphone and position in self.clips[BEFORE:]
        return captured_clip(clip, self.microphone, seed=7) if changed else clip


def positions(classes: Sequence[int], first: int, count: int) -> list[int]:
    """Of clips of these classes."""
    found = [number for number in range(6 * first, 6 * 60) if number % 6 in classes]
    return found[:count]


EARLIER = positions((0, 1, 2), 0, BEFORE)
LATER = positions((0, 1, 2), 30, NEWER)
OTHER_CLASSES = positions((3, 5), 30, NEWER)


def record(run_dir: Path, client: int, clips: Sequence[int], microphone: Condition | None = None) -> None:
    """Make this the data of a device."""
    public = open_store(run_dir / "public")
    source = Recorded(client, clips, microphone)
    build_store(
        source, clips, public.audio_spec, public.frame_spec, home(run_dir, client) / DATA_FOLDER,
        feature_steps=public.audio.shape[-1],
    )  # fmt: skip


def home(run_dir: Path, client: int) -> Path:
    return run_dir / "devices" / str(client)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service whose three devices have their first student."""
    trained = run_of_a_service(tmp_path_factory.mktemp("trained"))
    for client in range(len(NAMES)):
        shutil.rmtree(home(trained, client), ignore_errors=True)
        record(trained, client, EARLIER)
    run_dir = in_service(trained, tmp_path_factory.mktemp("served"))
    with service_of(run_dir, [0, 1, 2]) as running:
        for client in range(len(NAMES)):
            running.serve(client, 0)
    return run_dir


def in_service(run_dir: Path, folder: Path, pause_scale: float = 1e-5) -> Path:
    """A copy, in which pauses are short."""
    return copied_run(
        run_dir,
        folder,
        "lock",
        service=True,
        clients=3,
        devices=NAMES,
        reply_timeout=20.0,
        pause_scale=pause_scale,
    )


@pytest.fixture
def running(served: Path, tmp_path: Path) -> Iterator[Running]:
    with service_of(in_service(served, tmp_path), [0, 1, 2]) as found:
        yield found


def look(run_dir: Path, client: int) -> str:
    """As the device's own process does."""
    folder = home(run_dir, client)
    return find_change(folder, SHARE, loader(folder))


def causes(run_dir: Path) -> list[tuple[int, str]]:
    """Of all further visits."""
    visits = [one for one in read_events(run_dir) if one["event"] == "visit" and one["visit"]]
    return sorted((one["client"], one["cause"]) for one in visits)


def test_of_three_devices_those_with_other_classes_and_another_microphone_are_served_again_once(
    running: Running,
) -> None:
    run_dir = running.run_dir
    record(run_dir, 0, EARLIER + LATER)
    record(run_dir, 1, EARLIER + OTHER_CLASSES)
    record(run_dir, 2, EARLIER + LATER, PHONE)
    assert [look(run_dir, client) for client in range(3)] == ["", DRIFTED, DRIFTED]
    running.serve(1, 1)
    running.serve(2, 1)
    for client in range(3):
        assert look(run_dir, client) == "", "the new student is for the clips as they are"
    for _ in range(4):
        running.look_long()
    assert causes(run_dir) == [(1, DRIFTED), (2, DRIFTED)]
    assert running.newest()[0].visit == 0
    told = CliRunner().invoke(cli, ["status", "--state", str(run_dir)]).output
    assert told.count("(drift)") == 2
    for client in range(3):
        said = [one.what for one in read_log(home(run_dir, client)) if "newer clips differ" in one.what]
        assert bool(said) == (client != 0), "the owner's log has what was said"


def test_many_new_clips_and_another_folder_are_changes_and_other_names_are_not(running: Running) -> None:
    run_dir = running.run_dir
    record(run_dir, 0, positions((0, 1, 2), 0, BEFORE + BEFORE // 4))
    record(run_dir, 1, positions((0, 1, 2), 30, BEFORE))
    rename_clips(home(run_dir, 2) / DATA_FOLDER)
    assert [look(run_dir, client) for client in range(3)] == [CLIPS_CHANGED, CLIPS_CHANGED, ""]
    running.serve(0, 1)
    running.serve(1, 1)
    for _ in range(4):
        running.look_long()
    assert causes(run_dir) == [(0, CLIPS_CHANGED), (1, CLIPS_CHANGED)]


def rename_clips(store: Path) -> None:
    index = store / "index.csv"
    index.write_text(index.read_text().replace("private-", "moved-"))


def test_an_owner_who_keeps_changes_private_is_not_asked_again_and_nothing_is_said(running: Running) -> None:
    run_dir = running.run_dir
    record(run_dir, 0, positions((0, 1, 2), 30, BEFORE))
    assert look(run_dir, 0) == CLIPS_CHANGED
    write_policy(home(run_dir, 0), PrivacyPolicy(changes=False))
    before = len(read_log(home(run_dir, 0)))
    asked = running.asked(0, "query.hello")
    running.until(lambda: running.asked(0, "query.hello") > asked + 2, "it says who it is again")
    assert running.newest()[0].visit == 0
    assert len(read_log(home(run_dir, 0))) == before
    assert look(run_dir, 0) == ""
    write_policy(home(run_dir, 0), PrivacyPolicy())
    running.serve(0, 1)


def test_a_change_waits_for_the_pause_after_the_last_visit(served: Path, tmp_path: Path) -> None:
    with service_of(in_service(served, tmp_path, pause_scale=1e-3), [0]) as running:
        record(running.run_dir, 0, positions((0, 1, 2), 30, BEFORE))
        check_in_process(home(running.run_dir, 0), SHARE, threading.Event())
        assert announced(home(running.run_dir, 0)) == CLIPS_CHANGED
        last = running.newest()[0]
        ended = time.time()
        running.journal.visits._write(replace(last, started=ended, ended=ended))
        running.until(lambda: running.service._registry.present()[0].change, "the cloud knows")
        running.look_long()
        assert running.newest()[0].visit == 0
        running.journal.visits._write(replace(last, started=ended - 100, ended=ended - 100))
        running.serve(0, 1)
