"""Brings a database to the schema that this version of fedstill reads and writes.

A new database goes through every step. One from before the steps were counted has all tables and no version table:
the first step creates only what is missing, so it is recognised and numbered like any other. An upgrade is one
transaction behind a lock of the database: of several processes one does it, and killed in the middle it did nothing.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import column, inspect, select, table
from sqlalchemy.engine import Connection, Engine

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
LOCK_KEY = 0x_FED5_7111
"""Of PostgreSQL's advisory lock; any number that no other program on that database uses."""

_one_at_a_time = threading.Lock()  # Alembic keeps the running migration in module globals


class NewerSchema(RuntimeError):
    """The database was written by a later fedstill; one line that says what to do."""


@dataclass(frozen=True)
class Schema:
    """A set of tables with a history: ``folder`` holds ``vNNNN_what_changed.py``, revision NNNN after NNNN - 1."""

    name: str
    folder: Path

    @property
    def version_table(self) -> str:
        return f"{self.name}_schema"

    def revisions(self) -> list[str]:
        """Oldest first, without loading Alembic: opening a database that is up to date must stay cheap."""
        return sorted(path.stem[1:5] for path in self.folder.glob("v[0-9][0-9][0-9][0-9]_*.py"))


JOURNAL = Schema("journal", HERE / "journal")
REGISTRY = Schema("registry", HERE / "registry")


def upgrade(engine: Engine, schema: Schema) -> None:
    """Bring ``schema`` in this database to its newest revision; safe among other processes that do the same.

    Raises:
        NewerSchema: a later fedstill wrote the database.
        SQLAlchemyError: the database cannot be reached, or a step failed and was rolled back.
    """
    with engine.connect() as connection:
        if _is_newest(connection, schema):
            return
    from alembic import command  # here: most openings end above
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _escaped(HERE))
    config.set_main_option("version_locations", _escaped(schema.folder))
    config.set_main_option("path_separator", "newline")
    with _one_at_a_time, engine.begin() as connection:
        take_lock(connection)
        if not _is_newest(connection, schema):  # nobody else did it meanwhile
            config.attributes.update(connection=connection, version_table=schema.version_table)
            command.upgrade(config, "head")
            log.info("schema=%s upgraded_to=%s", schema.name, schema.revisions()[-1])


def _is_newest(connection: Connection, schema: Schema) -> bool:
    if not inspect(connection).has_table(schema.version_table):
        return False
    current = connection.scalar(select(column("version_num")).select_from(table(schema.version_table)))
    known = schema.revisions()
    if current is not None and current not in known:
        raise NewerSchema(
            f"written by a newer fedstill (schema {current}, this one knows {known[-1]}): "
            "install that version, or start with a new, empty state"
        )
    return current == known[-1]


def take_lock(connection: Connection) -> None:
    """Held until the end of the transaction; other databases than these two are upgraded without."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # sqlite3 itself does not begin before CREATE or ALTER
    elif connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")


def _escaped(folder: Path) -> str:
    return str(folder).replace("%", "%%")  # ConfigParser's own sign
