"""The task registry: versions, hot swap, and files that cannot be mixed up or half written."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.vit import task
from sqlalchemy.exc import SQLAlchemyError

from fedstill.cloud_server.serving.tasks.registry import RegistryError, RegistryUnavailable, TaskRegistry

TRUNK = "a" * 64
REGISTER_FOR_EVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from helpers.vit import task
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
registry = TaskRegistry(Path(sys.argv[1]))
seed = 0
while True:
    registry.register("busy", task(3, seed := seed + 1), "a" * 64)
    sys.stdout.write("x"); sys.stdout.flush()
"""


@pytest.fixture
def registry(tmp_path: Path):
    registry = TaskRegistry(tmp_path / "tasks")
    yield registry
    registry.close()


def test_what_goes_in_comes_out(registry: TaskRegistry) -> None:
    stored = task(5, 1, prompts=(2, 4))
    version = registry.register("birds", stored, TRUNK, latency_ms=300, utility=0.3, accuracy=0.9)
    assert (version.name, version.version, version.prompts, version.active) == ("birds", 1, (2, 4), True)
    assert (version.latency_ms, version.utility, version.accuracy) == (300, 0.3, 0.9)
    loaded = registry.load(version)
    assert loaded.class_names == stored.class_names
    assert torch.equal(loaded.head_weight, stored.head_weight)
    assert torch.equal(loaded.prompts[4], stored.prompts[4])


def test_a_new_version_is_active_and_an_old_one_can_return(registry: TaskRegistry) -> None:
    first, second = registry.register("a", task(3, 1), TRUNK), registry.register("a", task(4, 2), TRUNK)
    assert (first.version, second.version) == (1, 2)
    assert registry.get("a").version == 2
    assert [version.active for version in registry.versions("a")] == [False, True]
    registry.activate("a", 1)
    assert len(registry.load_active(TRUNK)["a"].class_names) == 3
    registry.remove("a")
    assert registry.active() == {}
    assert len(registry.versions()) == 2
    assert registry.activate("a", 2).active


def test_every_change_raises_the_generation(registry: TaskRegistry) -> None:
    seen = [registry.generation()]
    for change in (
        lambda: registry.register("a", task(3, 1), TRUNK),
        lambda: registry.register("a", task(3, 2), TRUNK),
        lambda: registry.activate("a", 1),
        lambda: registry.remove("a"),
    ):
        change()
        seen.append(registry.generation())
    assert seen == sorted(set(seen))
    assert registry.generation() == seen[-1]


def test_equal_parameters_are_stored_once(registry: TaskRegistry, tmp_path: Path) -> None:
    registry.register("a", task(3, 1), TRUNK)
    registry.register("b", task(3, 1), TRUNK)
    assert len(list((tmp_path / "tasks" / "parameters").iterdir())) == 1


def test_another_process_sees_the_tasks(registry: TaskRegistry, tmp_path: Path) -> None:
    registry.register("a", task(3, 1), TRUNK)
    other = TaskRegistry(tmp_path / "tasks")
    assert set(other.load_active(TRUNK)) == {"a"}
    other.close()


def test_registrations_at_once_each_get_a_version(tmp_path: Path) -> None:
    def register(seed: int) -> int:
        own = TaskRegistry(tmp_path / "tasks")
        number = own.register("a", task(3, seed), TRUNK).version
        own.close()
        return number

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(register, range(8))) == list(range(1, 9))


def test_an_altered_or_missing_file_is_refused(registry: TaskRegistry, tmp_path: Path) -> None:
    version = registry.register("a", task(3, 1), TRUNK)
    file = tmp_path / "tasks" / "parameters" / f"{version.parameters}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RegistryError, match="was altered"):
        registry.load(version)
    file.unlink()
    with pytest.raises(RegistryError, match="cannot be read"):
        registry.load(version)


def test_tasks_of_another_trunk_are_left_out(registry: TaskRegistry) -> None:
    registry.register("a", task(3, 1), TRUNK)
    registry.register("b", task(2, 1), "b" * 64)
    assert set(registry.load_active(TRUNK)) == set(registry.active_on(TRUNK)) == {"a"}
    assert set(registry.active_on("b" * 64)) == {"b"}
    assert set(registry.active()) == {"a", "b"}


def test_mistakes_are_one_line(registry: TaskRegistry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"task 'b' is not active \(active: none\)"):
        registry.get("b")
    registry.register("a", task(3, 1), TRUNK)
    with pytest.raises(RegistryError, match=r"task a has no version 7 \(it has 1\)"):
        registry.activate("a", 7)
    with pytest.raises(RegistryError, match=r"task 'b' is not active \(active: a\)"):
        registry.remove("b")
    with pytest.raises(RegistryError, match="use lower-case letters"):
        registry.register("../up", task(3, 1), TRUNK)
    with pytest.raises(RegistryError, match="latency_ms must be above 0"):
        registry.register("a", task(3, 1), TRUNK, latency_ms=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="cannot be used as a task registry"):
        TaskRegistry(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "registry.sqlite").write_text("this is no database, " * 100)
    with pytest.raises(RegistryError, match="cannot be used as a task registry"):
        TaskRegistry(tmp_path / "other")


@pytest.mark.slow
def test_a_killed_process_leaves_a_registry_that_loads(registry: TaskRegistry, tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", REGISTER_FOR_EVER, str(tmp_path / "tasks"), tests]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(3) == b"xxx"  # in full swing
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    versions = registry.versions("busy")
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    for version in versions:
        assert registry.load(version).width == 32
    assert registry.register("busy", task(3, 0), TRUNK).version == len(versions) + 1


def test_another_file_in_its_place_is_read_and_none_loses_nothing(
    registry: TaskRegistry, tmp_path: Path
) -> None:
    """A backup that is put back under a running server; connections that are open would stay with the old file."""
    file = tmp_path / "tasks" / "registry.sqlite"
    registry.register("a", task(3, 1), TRUNK)
    shutil.copy(file, tmp_path / "backup")
    registry.register("a", task(4, 2), TRUNK)
    before = registry.generation()
    assert registry.get("a").version == 2
    (tmp_path / "backup").replace(file)
    assert registry.generation() != before
    assert registry.get("a").version == 1

    shutil.move(file, tmp_path / "away")
    assert registry.generation(), "what is known is served on"
    for change in (
        lambda: registry.register("b", task(3, 1), TRUNK),
        lambda: registry.remove("a"),
        lambda: registry.activate("a", 1),
    ):
        with pytest.raises(RegistryUnavailable, match="is gone: put it back"):
            change()
    shutil.move(tmp_path / "away", file)
    registry.register("b", task(3, 1), TRUNK)
    later = TaskRegistry(tmp_path / "tasks")
    assert set(later.active()) == {"a", "b"}
    later.close()


def test_a_file_that_was_made_anew_has_another_generation(registry: TaskRegistry, tmp_path: Path) -> None:
    registry.register("a", task(3, 1), TRUNK)
    before = registry.generation()
    (tmp_path / "tasks" / "registry.sqlite").unlink()
    other = TaskRegistry(tmp_path / "tasks")
    other.register("b", task(3, 1), TRUNK)
    assert other.generation() == before
    assert registry.generation() > before
    assert set(registry.active()) == {"b"}
    other.close()


@pytest.mark.parametrize("wrong", [b"", b"rubbish" * 1000, "newer"])
def test_a_wrong_file_for_a_moment_is_forgotten_once_the_right_one_is_back(
    registry: TaskRegistry, tmp_path: Path, wrong: bytes | str
) -> None:
    file, away = tmp_path / "tasks" / "registry.sqlite", tmp_path / "away"
    registry.register("a", task(3, 1), TRUNK)
    before = registry.generation()
    shutil.move(file, away)
    if isinstance(wrong, str):
        shutil.copy(away, file)
        with sqlite3.connect(file) as database:
            database.execute("UPDATE registry_schema SET version_num = '9999'")
        database.close()
    else:
        file.write_bytes(wrong)
    for _ in range(3):
        with pytest.raises(SQLAlchemyError):
            registry.register("b", task(3, 1), TRUNK)
        with suppress(SQLAlchemyError):  # with an empty one, what is known is served on
            assert registry.generation() == before
    shutil.move(away, file)
    assert registry.register("b", task(3, 1), TRUNK).version == 1
    assert registry.generation() > before
    later = TaskRegistry(tmp_path / "tasks")
    assert set(later.active()) == set(registry.active()) == {"a", "b"}
    later.close()
