"""Schemas of journal and registry: an old state opens, steps make today's tables, one process at a time does them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from alembic.script import ScriptDirectory
from helpers.vit import task
from sqlalchemy import Engine, MetaData, create_engine, inspect

from fedstill.cli.shared.console import one_line_errors
from fedstill.cloud_server.distillation.selection import Selection
from fedstill.cloud_server.journal import tables as journal_tables
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal, JournalError, PrivacyGuarantee
from fedstill.cloud_server.migrations.upgrade import (
    HERE,
    JOURNAL,
    REGISTRY,
    NewerSchema,
    Schema,
    take_lock,
    upgrade,
)
from fedstill.cloud_server.serving.tasks import registry as registry_module
from fedstill.cloud_server.serving.tasks.registry import RegistryError, TaskRegistry
from fedstill.common.dataclass_codec import to_plain
from fedstill.models.vit.preprocess_settings import PLAIN
from fedstill.protos.messages import PrototypeUpload

OLD = Path(__file__).parents[2] / "data" / "state_without_revisions"
BOTH = pytest.mark.parametrize("schema", [JOURNAL, REGISTRY], ids=["journal", "registry"])
TABLES = {"journal": journal_tables.tables, "registry": registry_module.tables}
NEW_TABLES: dict[str, set[str]] = {
    "journal": {"visits", "requests", "bad_clips", "teachers"},
    "registry": set(),
}
"""Since the kept states were written."""
PLAIN_TEXT = json.dumps(to_plain(PLAIN))
NEW_COLUMNS: dict[tuple[str, str], tuple[Any, ...]] = {("registry", "task_versions"): (PLAIN_TEXT, "classes")}
"""Likewise, at the end of a table: their values in old rows."""
NEXT_STEP = """
import time
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0002", "0001"
def upgrade() -> None:
    op.add_column("nodes", sa.Column("place", sa.String(20), nullable=False, server_default="shelf"))
    time.sleep({sleep})
    {then}
"""
UPGRADE_AT_A_SIGN = """
import sys
from pathlib import Path
import alembic.command
from sqlalchemy import create_engine
from fedstill.cloud_server.migrations.upgrade import Schema, upgrade
engine = create_engine(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
upgrade(engine, Schema("journal", Path(sys.argv[2])))
"""
OPEN_AND_LIST_MODULES = """
import sys
from sqlalchemy import create_engine
from fedstill.cloud_server.migrations.upgrade import JOURNAL, upgrade
upgrade(create_engine(sys.argv[1]), JOURNAL)
print("alembic" in sys.modules)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = create_engine(url)
    yield made
    made.dispose()


def load_old(schema: Schema, engine: Engine) -> None:
    """Fill an empty database with what revision 866284a had written."""
    script = (OLD / f"{schema.name}.{engine.dialect.name}.sql").read_text()
    if engine.dialect.name == "sqlite":
        with sqlite3.connect(str(engine.url.database)) as connection:
            connection.executescript(script)
        connection.close()
        return
    with engine.begin() as begun:
        begun.exec_driver_sql(script)


def described(engine: Engine) -> dict[str, Any]:
    """Every table but the version table: columns, keys, indexes."""
    database = inspect(engine)
    return {
        name: (
            [{**column, "type": str(column["type"])} for column in database.get_columns(name)],
            database.get_pk_constraint(name),
            database.get_unique_constraints(name),
            database.get_foreign_keys(name),
            database.get_indexes(name),
        )
        for name in database.get_table_names()
        if not name.endswith("_schema")
    }


def rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return {
            name: sorted(map(tuple, connection.exec_driver_sql(f'SELECT * FROM "{name}"').all()), key=repr)
            for name in inspect(connection).get_table_names()
            if not name.endswith("_schema")
        }


def revision(schema: Schema, engine: Engine) -> str:
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT version_num FROM {schema.version_table}").all()
    assert len(found) == 1
    return str(found[0][0])


def with_new_tables(kept: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """The rows of an old state after all steps: nothing is in tables and columns that it did not have."""
    assert set(kept) | NEW_TABLES[schema.name] == set(TABLES[schema.name].tables)
    widened = {
        name: [row + NEW_COLUMNS.get((schema.name, name), ()) for row in rows] for name, rows in kept.items()
    }
    return widened | {name: [] for name in NEW_TABLES[schema.name]}


def with_next_step(folder: Path, then: str = "pass", sleep: float = 0.0) -> Schema:
    """The journal of a later fedstill: one step more."""
    shutil.copytree(JOURNAL.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    number = len(JOURNAL.revisions()) + 1
    text = NEXT_STEP.format(then=then, sleep=sleep)
    text = text.replace('"0002", "0001"', f'"{number:04}", "{number - 1:04}"')
    (folder / f"v{number:04}_place.py").write_text(text)
    return Schema("journal", folder)


@BOTH
def test_the_steps_make_the_tables_that_the_code_uses(schema: Schema, engine: Engine) -> None:
    upgrade(engine, schema)
    stepwise = described(engine)
    everything = MetaData()
    everything.reflect(engine)
    everything.drop_all(engine)
    assert described(engine) == {}
    TABLES[schema.name].create_all(engine)
    assert described(engine) == stepwise
    assert set(stepwise) == set(TABLES[schema.name].tables)


@BOTH
def test_the_steps_are_one_line_and_named_by_their_number(schema: Schema) -> None:
    steps = list(ScriptDirectory(str(HERE), version_locations=[str(schema.folder)]).walk_revisions())[::-1]
    numbers = [f"{number:04}" for number in range(1, len(steps) + 1)]
    assert [step.revision for step in steps] == numbers == schema.revisions()
    assert [step.down_revision for step in steps] == [None, *numbers[:-1]]
    assert len(schema.revisions()) == len(
        [path for path in schema.folder.glob("*.py") if path.stem != "__init__"]
    )


@BOTH
def test_a_state_from_before_the_numbers_keeps_every_row(schema: Schema, engine: Engine) -> None:
    load_old(schema, engine)
    before = rows(engine)
    assert all(before.values()), "the kept state has rows in every table"
    upgrade(engine, schema)
    assert rows(engine) == with_new_tables(before, schema)
    assert revision(schema, engine) == schema.revisions()[-1]
    upgrade(engine, schema)
    assert rows(engine) == with_new_tables(before, schema)


def test_an_old_journal_goes_on(url: str, engine: Engine) -> None:
    load_old(JOURNAL, engine)
    kitchen, hall = (JobKey("latency_sensitive", "fedstill", client, 0) for client in (0, 1))
    journal = Journal(url)
    assert revision(JOURNAL, engine) == JOURNAL.revisions()[-1]
    kept = journal.upload(kitchen, 1)
    assert kept is not None
    np.testing.assert_array_equal(kept.probabilities, [[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    assert (kept.counts.tolist(), kept.class_names) == ([7, 5], ("calm", "happy", "sad"))
    chosen = journal.selection(hall, 0)
    assert isinstance(chosen, Selection)
    assert (chosen.positions.tolist(), chosen.weights.tolist()) == ([3, 1, 2], [1, 2, 0.5])
    assert journal.jobs() == [{"losses": [0.5, 0.25], "evaluations": [{"correct": 3, "total": 4}]}]
    assert [one.round for one in journal.rounds(kitchen)] == [0, 1]
    assert journal.failures() == [{"round": 1, "reason": "device left"}]
    assert [(row["kind"], row["epsilon"]) for row in journal.privacy()][-1] == ("dp", 4.0)
    assert [row["bytes"] for row in journal.students()] == [4096]

    other = PrototypeUpload(
        kitchen.at(1), np.array([[1, 0, 0]], np.float32), np.array([1], np.int64), kept.class_names
    )
    again = journal.accept_upload(kitchen, 1, other, PrivacyGuarantee("histogram"))
    assert again.counts.tolist() == [7, 5], "the first upload still counts"
    journal.spend(hall, 1, "query.prototypes", 9, 10)
    assert journal.traffic(hall)[-1] == {"round": 1, "up_bytes": 9, "down_bytes": 10}
    journal.accept_upload(hall, 1, other, PrivacyGuarantee("histogram"))
    assert len(journal.uploaded()) == 4
    journal.close()


def test_an_old_registry_goes_on(tmp_path: Path, engine: Engine, url: str) -> None:
    load_old(REGISTRY, engine)
    folder = tmp_path / "tasks"
    shutil.copytree(OLD / "parameters", folder / "parameters")
    registry = TaskRegistry(folder, url)
    assert revision(REGISTRY, engine) == REGISTRY.revisions()[-1]
    active = registry.active()
    assert {name: version.version for name, version in active.items()} == {"birds": 1, "cars": 1}
    assert [(one.name, one.version) for one in registry.versions()] == [
        ("birds", 1), ("birds", 2), ("cars", 1), ("gone", 1)
    ]  # fmt: skip
    birds = active["birds"]
    assert (birds.latency_ms, birds.utility, birds.accuracy, birds.prompts) == (300, 0.5, 0.75, (2,))
    assert {len(registry.load(one).class_names) for one in registry.versions()} == {2, 3}
    assert {registry.load(one).preprocess for one in registry.versions()} == {PLAIN}
    generation = registry.generation()
    assert registry.register("birds", task(3, 1), "a" * 64).version == 3
    assert registry.activate("gone", 1).active
    assert registry.generation() == generation + 2
    registry.close()


def test_journal_and_registry_share_a_database(url: str, engine: Engine, tmp_path: Path) -> None:
    Journal(url).close()
    TaskRegistry(tmp_path, url).close()
    assert set(described(engine)) == {name for tables in TABLES.values() for name in tables.tables}


def test_a_first_start_that_was_killed_half_way_is_made_whole(url: str, engine: Engine) -> None:
    journal_tables.UPLOADS.create(engine)  # as the tables were once made, one after the other
    Journal(url).close()
    assert set(described(engine)) == set(journal_tables.tables.tables)


@BOTH
def test_a_database_of_a_newer_fedstill_is_refused_in_one_line(
    schema: Schema, url: str, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_old(schema, engine)
    upgrade(engine, schema)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.version_table} SET version_num = '9999'")
    before = rows(engine)
    expected = r"newer fedstill \(schema 9999, this one knows \d{4}\): install that version, or start with"
    if schema is JOURNAL:
        with pytest.raises(JournalError, match=expected):
            Journal(url)
        with pytest.raises(typer.Exit), one_line_errors():
            Journal(url)
    else:
        with pytest.raises(RegistryError, match=expected):
            TaskRegistry(tmp_path, url)
        with pytest.raises(typer.Exit), one_line_errors():
            TaskRegistry(tmp_path, url)
    (line,) = capsys.readouterr().err.splitlines()
    assert "newer fedstill" in line
    assert rows(engine) == before
    assert revision(schema, engine) == "9999"


def test_a_later_step_keeps_the_rows_of_an_old_state(engine: Engine, tmp_path: Path) -> None:
    load_old(JOURNAL, engine)
    before = rows(engine)
    later = with_next_step(tmp_path / "50% of: it")
    upgrade(engine, later)
    after = rows(engine)
    assert [row[-1] for row in after["nodes"]] == ["shelf", "shelf"]
    after["nodes"] = [row[:-1] for row in after["nodes"]]
    assert after == with_new_tables(before, JOURNAL)
    with pytest.raises(NewerSchema):
        upgrade(engine, JOURNAL)


def test_a_step_that_fails_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    load_old(JOURNAL, engine)
    before, shape = rows(engine), described(engine)
    with pytest.raises(ZeroDivisionError):
        upgrade(engine, with_next_step(tmp_path / "steps", then="1 / 0"))
    assert (rows(engine), described(engine)) == (before, shape)
    assert not inspect(engine).has_table(JOURNAL.version_table)
    upgrade(engine, JOURNAL)
    assert rows(engine) == with_new_tables(before, JOURNAL)


def test_of_several_processes_one_does_the_steps(url: str, engine: Engine, tmp_path: Path) -> None:
    load_old(JOURNAL, engine)
    before = rows(engine)
    later = with_next_step(tmp_path / "steps", sleep=0.3)  # adding the column twice would fail
    command = [sys.executable, "-c", UPGRADE_AT_A_SIGN, url, str(later.folder)]
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    endings = [(process.communicate()[1], process.returncode) for process in processes]
    assert endings == [("", 0)] * 3
    assert revision(later, engine) == later.revisions()[-1]
    after = rows(engine)
    assert {name: len(found) for name, found in after.items()} == {
        name: len(found) for name, found in with_new_tables(before, JOURNAL).items()
    }


def test_what_is_up_to_date_opens_without_alembic_and_without_a_lock(url: str, engine: Engine) -> None:
    upgrade(engine, JOURNAL)
    with engine.begin() as writing:
        take_lock(writing)
        command = [sys.executable, "-c", OPEN_AND_LIST_MODULES, url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")
