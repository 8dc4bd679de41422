"""What an agent keeps is deleted, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import CliRunner

from fedstill.cli.main import app
from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import FolderInUse, sole_user
from fedstill.edge_client import folder as layout
from fedstill.edge_client.owner import wipe
from fedstill.edge_client.owner.wipe import what_is_kept, wipe_folder


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    (folder / "students").mkdir(parents=True)
    (folder / "students" / "one.safetensors").write_bytes(b"w" * 100)
    for name in ("clips.json", "clip_format.json", "uploads.jsonl.1", "privacy.sqlite", "privacy.sqlite-wal"):
        (folder / name).write_text("{}")
    for name in (
        "supernode.pid",
        "warm_start.pid",
        "warm_start.log",
        "warm_start.log.1",
    ):  # as a kill leaves them
        (folder / name).write_text("{}")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "mine.wav").write_bytes(b"sound")
    (folder / "data").symlink_to(tmp_path / "clips")
    return folder


def test_what_a_link_points_to_stays(agent: Path, tmp_path: Path) -> None:
    assert what_is_kept(agent).files == 10
    assert wipe_folder(agent) == []
    assert not agent.exists()
    assert (tmp_path / "clips" / "mine.wav").read_bytes() == b"sound"


def test_whatever_the_layout_names_is_deleted(tmp_path: Path) -> None:
    names = [value for key, value in vars(layout).items() if key.endswith(("_FILE", "_FOLDER"))]
    assert len(names) > 15
    folder = tmp_path / "agent"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    assert wipe_folder(folder) == []
    assert not folder.exists()


def test_what_is_not_the_agent_s_stays(agent: Path) -> None:
    (agent / "mine").mkdir()
    (agent / "mine" / "a.wav").write_bytes(b"sound")
    assert wipe_folder(agent) == ["mine"]
    assert [path.name for path in agent.rglob("*")] == ["mine", "a.wav"]


def test_an_interrupted_one_is_done_again(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wipe.shutil, "rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        wipe_folder(agent)
    monkeypatch.undo()
    assert wipe_folder(agent) == []
    assert not agent.exists()


def test_only_an_agent_s_folder_and_not_while_it_runs(agent: Path, tmp_path: Path) -> None:
    (tmp_path / "clips" / "students").mkdir()
    with pytest.raises(ConfigError, match="not an agent's folder"):
        wipe_folder(tmp_path / "clips")
    with sole_user(agent), pytest.raises(FolderInUse):
        wipe_folder(agent)
    (agent / "plan.json").write_text("{}")  # a coordinator's
    with pytest.raises(ConfigError, match="not an agent's folder"):
        wipe_folder(agent)
    assert (agent / "clip_format.json").exists()


def test_it_asks_first(agent: Path) -> None:
    command = ["agent", "wipe", "--state", str(agent)]
    assert "Delete 10 files" in CliRunner().invoke(app, command, input="n\n").output
    assert agent.exists()
    assert CliRunner().invoke(app, [*command, "--yes"]).exit_code == 0
    assert not agent.exists()


@pytest.mark.parametrize("command", [("status",), ("wipe", "--yes")])
def test_a_folder_of_another_user_is_one_line(
    command: tuple[str, ...], agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, because nothing is forbidden to root."""

    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    done = CliRunner().invoke(app, ["agent", command[0], "--state", str(agent), *command[1:]])
    assert (done.exit_code, done.output.count("\n")) == (1, 1), done.output
    assert f"Permission denied: '{agent / 'clips.json'}'" in done.output
    assert agent.exists()
