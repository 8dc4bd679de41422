"""The task registry: which tasks are served, in which version, with which parameters (thesis ``Register_Task``).

Every registration makes a new version; one version per task is active. Parameters are safetensors files named by
the SHA-256 of their content, written before the row that points at them, so a killed process leaves at most a file
without a row. Servers watch ``generation`` and swap tasks when it has grown.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
from sqlalchemy import Column, Float, Integer, MetaData, String, Table, create_engine, make_url, select
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from fedstill.cloud_server.migrations.upgrade import REGISTRY, NewerSchema, upgrade
from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import ConfigError, DataError, first_line
from fedstill.common.option_values import shown_url
from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.models.vit.task_outputs import Output
from fedstill.models.weights.packing import pack, unpack

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
Changed = TypeVar("Changed")
REPLACED = 2**32
"""More than any number of changes."""
ATTEMPTS = 20
"""Attempts to get a version number when several processes register the same task at once."""


class RegistryError(DataError):
    """The registry cannot do what was requested; one line that says what to do instead."""


class RegistryUnavailable(SQLAlchemyError):
    """The registry's file is gone, or another one in its place cannot be used: like a database that does not answer."""


DEFAULT_LATENCY_MS, DEFAULT_UTILITY = 600.0, 1.0
"""Of queries that name none, of a task that names none."""


@dataclass(frozen=True, slots=True)
class TaskVersion:
    """One registered version of a task.

    Attributes:
        name, version: versions of a name count up from 1.
        class_names: in the order of the logits.
        trunk: SHA-256 of the trunk's weights that the parameters were trained on.
        parameters: SHA-256 of the safetensors file.
        prompts: prompt numbers that it has sets for.
        latency_ms, utility: the defaults for queries that name none (thesis Table 3.5).
        accuracy: share of right answers on its validation images at registration.
        created: ISO time, UTC.
        preprocess: of the images that it was trained on, and of those that it classifies.
        active: whether this is the version that is served.
        output: what it answers.
    """

    name: str
    version: int
    class_names: tuple[str, ...]
    trunk: str
    parameters: str
    prompts: tuple[int, ...]
    latency_ms: float
    utility: float
    accuracy: float
    created: str
    active: bool
    preprocess: Preprocess = PLAIN
    output: Output = "classes"

    @property
    def fingerprint(self) -> str:
        """Stands for all that its answers depend on beside the trunk: parameters and preparation."""
        if self.preprocess == PLAIN:  # as before it was stored, so that measured profiles stay valid
            return self.parameters
        return hashlib.sha256(f"{self.parameters} {_as_text(self.preprocess)}".encode()).hexdigest()


def _as_text(preprocess: Preprocess) -> str:
    return json.dumps(to_plain(preprocess))


tables = MetaData()
"""As the newest revision in ``cloud_server/migrations/registry`` leaves them."""
_versions = Table(
    "task_versions",
    tables,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("class_names", String, nullable=False),
    Column("trunk", String(64), nullable=False),
    Column("parameters", String(64), nullable=False),
    Column("prompts", String, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Column("utility", Float, nullable=False),
    Column("accuracy", Float, nullable=False),
    Column("created", String(32), nullable=False),
    Column("preprocess", String, nullable=False, server_default=_as_text(PLAIN)),
    Column("output", String(16), nullable=False, server_default="classes"),
)
_active = Table(
    "active_tasks",
    tables,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
)
_changes = Table("changes", tables, Column("generation", Integer, primary_key=True))


IN_MEMORY = ("", ":memory:")


class TaskRegistry:
    """Tasks below one folder: ``registry.sqlite`` and ``parameters/SHA256.safetensors``.

    Args:
        folder: made if needed.
        url: another SQLAlchemy database than the folder's own SQLite file.

    Raises:
        RegistryError: the database cannot be opened, or is a newer fedstill's.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self._blobs = folder / "parameters"
        if url and (file := sqlite_file(url)) is not None and file.name in IN_MEMORY:
            raise RegistryError(
                f"--database {shown_url(url)}: is gone with the process; name a file: sqlite:///FILE"
            )
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            own = folder / "registry.sqlite"
            self._file = sqlite_file(url) if url else own
            self._database = create_engine(url or f"sqlite:///{own}", pool_pre_ping=True)
            upgrade(self._database, REGISTRY)
            self._identity, self._replaced = self._found(), 0
        except ImportError as error:  # of a database's driver
            raise RegistryError(
                f"--database {shown_url(url or '')}: needs a package that is not installed ({error.name}); for "
                "PostgreSQL: pip install '.[postgresql]', and write postgresql+psycopg://"
            ) from error
        except (OSError, SQLAlchemyError, NewerSchema, ValueError) as error:
            place = f"--database {shown_url(url)}" if url else str(folder)
            raise RegistryError(f"{place}: cannot be used as a task registry ({_short(error)})") from error

    def close(self) -> None:
        """Close the database."""
        self._database.dispose()

    def register(
        self,
        name: str,
        task: TaskParameters,
        trunk: str,
        *,
        latency_ms: float = DEFAULT_LATENCY_MS,
        utility: float = DEFAULT_UTILITY,
        accuracy: float = 0.0,
    ) -> TaskVersion:
        """Store a new version and make it the active one.

        Raises:
            RegistryError: a name, latency objective or utility that cannot be.
        """
        check_new_version(name, latency_ms, utility)
        values = {
            "name": name,
            "class_names": json.dumps(task.class_names),
            "trunk": trunk,
            "parameters": self._store(task),
            "prompts": json.dumps(sorted(task.prompts)),
            "latency_ms": latency_ms,
            "utility": utility,
            "accuracy": accuracy,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "preprocess": _as_text(task.preprocess),
            "output": task.output,
        }
        return self.get(name, self._add_version(name, values))

    def _add_version(self, name: str, values: dict[str, object]) -> int:
        """The number of the new version; another process may register at the same time."""

        def add(connection: Connection) -> int:
            version = max((row.version for row in _rows(connection, name)), default=0) + 1
            connection.execute(_versions.insert().values(version=version, **values))
            _activate(connection, name, version)
            return version

        return self._change(name, add)

    def _change(self, name: str, change: Callable[[Connection], Changed]) -> Changed:
        """One transaction; again, if another process changed the same rows meanwhile."""
        self._follow_file()
        for _ in range(ATTEMPTS):
            try:
                with self._database.begin() as connection:
                    return change(connection)
            except IntegrityError:
                continue
        raise RegistryError(f"task {name}: is being changed by too many others: try again")

    def activate(self, name: str, version: int) -> TaskVersion:
        """Serve that version from now on: back to an older one, or a removed task again."""
        self.get(name, version)
        self._change(name, lambda connection: _activate(connection, name, version))
        return self.get(name, version)

    def remove(self, name: str) -> None:
        """Stop serving a task; its versions stay, so that it can be activated again."""

        def drop(connection: Connection) -> None:
            gone = connection.execute(_active.delete().where(_active.c.name == name))
            if not gone.rowcount:
                raise self._unknown(name, connection)
            _count_change(connection)

        self._change(name, drop)

    def get(self, name: str, version: int | None = None) -> TaskVersion:
        """One version, by default the active one. Raises RegistryError naming what there is."""
        with self._database.connect() as connection:
            for row in _rows(connection, name):
                if row.active if version is None else row.version == version:
                    return row
            raise self._unknown(name, connection, version)

    def active(self) -> dict[str, TaskVersion]:
        """All active versions by name, sorted."""
        return {row.name: row for row in self.versions() if row.active}

    def versions(self, name: str | None = None) -> tuple[TaskVersion, ...]:
        """All versions, by name and number."""
        with self._database.connect() as connection:
            return tuple(_rows(connection, name))

    def generation(self) -> int:
        """Grows with every change, also if another file was put in the registry's place; equal numbers mean that
        nothing changed."""
        if self._found() is not None:  # without a file, what is known is served on
            self._follow_file()
        with self._database.connect() as connection:
            counted = max(connection.execute(select(_changes.c.generation)).scalars(), default=0)
        return self._replaced * REPLACED + counted

    def _found(self) -> tuple[int, int] | None:
        """What tells the registry's file from another one of its name; None without one, or while it is still empty."""
        try:
            found = self._file.stat() if self._file is not None else None
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if found and found.st_size else None

    def _follow_file(self) -> None:
        """Open connections stay with a file that was deleted or replaced, as by a backup that was put back: what they
        write would be lost. Raises SQLAlchemyError if there is none that can be used."""
        if self._file is None:
            return
        found = self._found()
        if found is None:
            raise RegistryUnavailable(f"{self._file}: is gone: put it back, or start the server again")
        if found == self._identity:
            return
        self._identity = None  # until this one has turned out to be usable
        self._database.dispose()
        try:
            upgrade(self._database, REGISTRY)
        except NewerSchema as error:
            raise RegistryUnavailable(f"{self._file}: {error}") from error
        self._identity, self._replaced = found, self._replaced + 1

    def load(self, version: TaskVersion) -> TaskParameters:
        """The parameters of a version. Raises RegistryError for a missing or altered file."""
        path = self._path(version.parameters)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RegistryError(
                f"{path}: cannot be read ({_short(error)}): register the task again"
            ) from error
        if hashlib.sha256(content).hexdigest() != version.parameters:
            raise RegistryError(f"{path}: was altered, its SHA-256 is another: register the task again")
        try:
            tensors = unpack(np.frombuffer(content, dtype=np.uint8))
            prompts = {count: tensors[f"prompts.{count}"] for count in version.prompts}
            weight, bias = tensors["head.weight"], tensors["head.bias"]
            kept = (version.preprocess, version.output)
            return TaskParameters(version.class_names, weight, bias, prompts, *kept)
        except (KeyError, ValueError) as error:
            raise RegistryError(f"{path}: does not hold task parameters ({_short(error)})") from error

    def active_on(self, trunk: str) -> dict[str, TaskVersion]:
        """The active versions that were trained on ``trunk``: what a server of that trunk can serve."""
        return {name: version for name, version in self.active().items() if version.trunk == trunk}

    def load_active(self, trunk: str) -> dict[str, TaskParameters]:
        """The parameters of ``active_on``, to build a task bank from. Raises RegistryError as ``load`` does."""
        return {name: self.load(version) for name, version in self.active_on(trunk).items()}

    def _store(self, task: TaskParameters) -> str:
        tensors = {"head.weight": task.head_weight, "head.bias": task.head_bias}
        tensors |= {f"prompts.{count}": prompts for count, prompts in task.prompts.items()}
        content = pack({name: tensor.float() for name, tensor in sorted(tensors.items())}).tobytes()
        digest = hashlib.sha256(content).hexdigest()
        path = self._path(digest)
        if not path.exists():
            replace_file(path, content, PRIVATE)
        return digest

    def _path(self, digest: str) -> Path:
        return self._blobs / f"{digest}.safetensors"

    def _unknown(self, name: str, connection: Connection, version: int | None = None) -> RegistryError:
        rows = _rows(connection, name)
        if rows and version is not None:
            there = ", ".join(str(row.version) for row in rows)
            return RegistryError(f"task {name} has no version {version} (it has {there})")
        known = ", ".join(connection.execute(select(_active.c.name).order_by(_active.c.name)).scalars())
        return RegistryError(f"task {name!r} is not active (active: {known or 'none'})")


def check_new_version(name: str, latency_ms: float, utility: float) -> None:
    """Raises RegistryError for a name, latency objective or utility that cannot be."""
    if not NAME.fullmatch(name):
        raise RegistryError(f"task name {name!r}: use lower-case letters, digits, '.', '_' and '-'")
    if not 0 < latency_ms < float("inf") or not 0 <= utility < float("inf"):
        raise RegistryError(f"task {name}: latency_ms must be above 0 and utility not below 0")


def _rows(connection: Connection, name: str | None) -> list[TaskVersion]:
    wanted = (
        select(_versions, _active.c.version.label("active"))
        .outerjoin(_active, _active.c.name == _versions.c.name)
        .order_by(_versions.c.name, _versions.c.version)
    )
    if name is not None:
        wanted = wanted.where(_versions.c.name == name)
    return [_version(row) for row in connection.execute(wanted)]


def _version(row: Row[tuple[object, ...]]) -> TaskVersion:
    values = row._asdict()
    values["class_names"] = tuple(json.loads(values["class_names"]))
    values["prompts"] = tuple(json.loads(values["prompts"]))
    values["preprocess"] = from_plain(Preprocess, json.loads(values["preprocess"]))
    values["active"] = values["active"] == values["version"]
    return TaskVersion(**values)


def _activate(connection: Connection, name: str, version: int) -> None:
    connection.execute(_active.delete().where(_active.c.name == name))
    connection.execute(_active.insert().values(name=name, version=version))
    _count_change(connection)


def _count_change(connection: Connection) -> None:
    # One statement: of two processes at once, the second one counts on from the first one's number.
    counted = connection.execute(_changes.update().values(generation=_changes.c.generation + 1))
    if not counted.rowcount:
        connection.execute(_changes.insert().values(generation=1))


def _short(error: Exception) -> str:
    return first_line(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)


def sqlite_file(url: str) -> Path | None:
    """The file of a URL of SQLite, without a name if it is in memory; None for other databases, and for no URL."""
    try:
        made = make_url(url)
    except (ArgumentError, ValueError):  # of a port that is no number
        return None
    if made.get_backend_name() != "sqlite":
        return None
    memory = made.query.get("mode") == "memory"
    return Path("" if memory else (made.database or "").removeprefix("file:"))


def open_registry(registry: Path, database: str = "") -> TaskRegistry:
    """An existing registry: reading must not make one. database: its URL, if not in the folder."""
    if not registry.is_dir():
        raise ConfigError(f"{registry}: no task registry here; make one with: fedstill tasks add NAME")
    file = sqlite_file(database)
    if file is not None and file.name not in IN_MEMORY and not file.exists():
        raise ConfigError(
            f"--database {shown_url(database)}: no such file; make one with: fedstill tasks add NAME"
        )
    return TaskRegistry(registry, database or None)
