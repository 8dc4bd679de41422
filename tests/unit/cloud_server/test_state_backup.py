"""A coordinator's folder as one file, and back."""

from __future__ import annotations

import json
import tarfile
import threading
from pathlib import Path

import pytest
from helpers.command import CliRunner

from fedstill.cli.main import app
from fedstill.cloud_server.coordinator.state_backup import back_up, restore
from fedstill.cloud_server.journal.journal import Journal
from fedstill.cloud_server.journal.visit import NEW, SERVED, Visit
from fedstill.common.errors import ConfigError


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "co"
    (folder / "seed0" / "students").mkdir(parents=True)
    (folder / "superlink").mkdir()
    plan = {"clients": 1, "devices": ["hall"], "journal": "", "pause_scale": 1.0}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "seed0" / "students" / "one.safetensors").write_bytes(b"weights" * 1000)
    (folder / "seed0" / "students" / "two.safetensors").hardlink_to(
        folder / "seed0" / "students" / "one.safetensors"
    )
    (folder / "superlink" / "state.db").write_bytes(b"of Flower")
    (folder / "superlink.pid").write_text("1")
    return folder


def test_what_comes_back_is_what_was_there(state: Path, tmp_path: Path) -> None:
    journal = Journal(f"sqlite:///{state / 'journal.db'}")  # still open, and newer than its file
    journal.visits.end(journal.visits.begin(Visit(0, 0, NEW, "hall")), SERVED, "", "a" * 64)
    size = back_up(state, tmp_path / "kept.tar")
    assert size == (tmp_path / "kept.tar").stat().st_size
    journal.visits.ask([0])  # after the backup
    journal.close()
    restore(tmp_path / "kept.tar", tmp_path / "again")
    found = Journal(f"sqlite:///{tmp_path / 'again' / 'journal.db'}")
    assert found.visits.newest()[0].outcome == SERVED
    assert found.visits.asked() == {}
    found.close()
    for name in ("one.safetensors", "two.safetensors"):
        students = Path("seed0") / "students" / name
        assert (tmp_path / "again" / students).read_bytes() == (state / students).read_bytes()
    assert not (tmp_path / "again" / "superlink").exists()
    assert not list((tmp_path / "again").rglob("*.pid"))
    assert not list(tmp_path.glob(".*"))


def test_a_journal_that_is_being_written_is_whole(state: Path, tmp_path: Path) -> None:
    journal, stop = Journal(f"sqlite:///{state / 'journal.db'}"), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            journal.visits.begin(Visit(number, 0, NEW, "hall"))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for place in range(5):
            back_up(state, tmp_path / "kept.tar")
            restore(tmp_path / "kept.tar", tmp_path / f"again{place}")
            found = Journal(f"sqlite:///{tmp_path / f'again{place}' / 'journal.db'}")
            clients = sorted(found.visits.newest())
            assert clients == list(range(len(clients)))
            found.close()
    finally:
        stop.set()
        writer.join()
        journal.close()


def test_nothing_is_overwritten_and_nothing_half_is_taken(state: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.tar"
    back_up(state, kept)
    with pytest.raises(ConfigError, match="is not empty"):
        restore(kept, state)
    whole = kept.read_bytes()
    for damaged in (
        whole[:1024],
        whole[:1536],
        whole[:3000],
        whole.replace(b"weights", b"weighty", 1),
        b"no tar",
        b"",
    ):
        kept.write_bytes(damaged)
        with pytest.raises(ConfigError, match="not a whole backup"):
            restore(kept, tmp_path / "again")
        assert not (tmp_path / "again").exists()
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(state / "seed0", "seed0")
    with pytest.raises(ConfigError, match="its end is missing"):
        restore(tmp_path / "other.tar", tmp_path / "again")
    (tmp_path / "link").symlink_to(state)
    for inside in (state, tmp_path / "link"):
        with pytest.raises(ConfigError, match="lies in the folder"):
            back_up(state, inside / "kept.tar")
    for target in (tmp_path / "none" / "kept.tar", tmp_path):
        with pytest.raises(ConfigError, match="name a file in a folder that exists"):
            back_up(state, target)
    for source in (tmp_path / "nothing.tar", tmp_path):
        with pytest.raises(ConfigError, match=r"No such file|Is a directory"):
            restore(source, tmp_path / "again")


def test_an_empty_folder_is_filled_in_place(state: Path, tmp_path: Path) -> None:
    """A volume of a container can be neither removed nor renamed."""
    back_up(state, tmp_path / "kept.tar")
    (tmp_path / "volume").mkdir()
    (tmp_path / "again").symlink_to(tmp_path / "volume")
    restore(tmp_path / "kept.tar", tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "volume").iterdir()) == ["plan.json", "seed0"]


def test_as_its_operator_does(state: Path, tmp_path: Path) -> None:
    Journal(f"sqlite:///{state / 'journal.db'}").close()
    run = CliRunner().invoke
    kept, again = str(tmp_path / "kept.tar"), str(tmp_path / "again")
    assert "MB" in run(app, ["fleet", "backup", "--state", str(state), kept]).output
    assert run(app, ["fleet", "restore", kept, "--state", again]).exit_code == 0
    assert "hall" in run(app, ["status", "--state", again]).output
    refused = run(app, ["fleet", "backup", "--state", str(tmp_path), kept])
    assert refused.exit_code == 2
    assert "not a coordinator's folder" in refused.output
