"""One registry for several machines: a database by its URL, and a folder that all of them see."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.command import CliRunner
from helpers.vit import task

from fedstill.cli.main import app
from fedstill.cloud_server.serving.tasks.registry import RegistryError, TaskRegistry, open_registry

TRUNK = "a" * 64


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    return str(request.getfixturevalue("postgresql"))


def test_changes_at_once_are_each_whole_and_each_counted(url: str, tmp_path: Path) -> None:
    """Eight processes' worth of connections change the same task."""
    folder = tmp_path / "objects"
    first = TaskRegistry(folder, url)
    for seed in range(2):
        first.register("cats", task(3, seed), TRUNK)
    before = first.generation()

    def change(number: int) -> int:
        own = TaskRegistry(folder, url)
        changes: tuple[Callable[[], object], ...] = (
            lambda: own.activate("cats", 1),
            lambda: own.activate("cats", 2),
            lambda: own.register("cats", task(3, number), TRUNK),
            lambda: own.register(f"other{number}", task(2, number), TRUNK),
        )
        for turn in range(4):
            changes[(number + turn) % 4]()
        own.close()
        return 4

    with ThreadPoolExecutor(8) as pool:
        counted = sum(pool.map(change, range(8)))
    assert first.generation() == before + counted
    versions = first.versions("cats")
    assert [one.version for one in versions] == list(range(1, 11))
    assert sum(one.active for one in versions) == 1
    assert all(first.load(one).width == 32 for one in first.versions())
    first.close()


def test_a_task_that_is_removed_and_activated_at_once_is_in_one_of_the_two_states(
    url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    first = TaskRegistry(folder, url)
    first.register("cats", task(3, 0), TRUNK)
    before = first.generation()

    def change(number: int) -> int:
        own = TaskRegistry(folder, url)
        done = 0
        for _ in range(6):
            try:
                own.remove("cats") if number % 2 else own.activate("cats", 1)
                done += 1
            except RegistryError:  # it was removed already
                assert number % 2
        own.close()
        return done

    with ThreadPoolExecutor(4) as pool:
        counted = sum(pool.map(change, range(4)))
    assert first.generation() == before + counted
    assert set(first.active()) <= {"cats"}
    assert first.activate("cats", 1).active
    first.close()


def test_the_database_of_the_commands_is_that_of_the_servers(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    made = TaskRegistry(folder, url)
    made.register("cats", task(3, 0), TRUNK)
    made.register("cats", task(3, 1), TRUNK)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["tasks", *words, "--registry", str(folder), "--database", url])
        assert done.exit_code == 0, done.output
        return done.output

    run("activate", "cats", "1")
    other = open_registry(folder, url)
    assert other.active()["cats"].version == 1
    assert "cats" in run("list", "--all")
    run("remove", "cats")
    assert (other.active(), made.active()) == ({}, {})
    assert not (folder / "registry.sqlite").exists()
    made.close()
    other.close()


@pytest.mark.parametrize(("bad", "said"), [
    ("postgresql+psycopg://me:hunter2@127.0.0.1:1/none?connect_timeout=2", "cannot be used as a task registry"),
    ("postgresql+psycopg2://me:hunter2@127.0.0.1:1/none", "postgresql+psycopg://"),
    ("oracle+nothing://me:hunter2@there/none", "cannot be used as a task registry"),
    ("hunter2", "not a URL"),
    ("postgresql:/me:hunter2@127.0.0.1:1/none", "not a URL"),
    ("postgresql+psycopg://127.0.0.1:1/none?connect_timeout=2&user=me&password=hunter2", "cannot be used"),
    ("sqlite:///no/such/folder/shared.db", "no such file"),
    ("postgresql+psycopg://me:hu?nter2@127.0.0.1:1/none?connect_timeout=1", "me:***@127.0.0.1"),
    ("sqlite://", "is gone with the process"),
    ("sqlite+pysqlite:///:memory:", "is gone with the process"),
    ("sqlite:///file:x.db?mode=memory&uri=true", "is gone with the process"),
])  # fmt: skip
def test_a_database_that_cannot_be_used_is_one_line_without_the_password(
    tmp_path: Path, bad: str, said: str
) -> None:
    words = ["tasks", "list", "--registry", str(tmp_path), "--database", bad]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert said in done.output
    assert "nter2" not in done.output
    assert len(done.output.strip().splitlines()) == 1
