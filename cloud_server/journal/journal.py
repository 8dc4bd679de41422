"""What the cloud must not lose: one SQL database per run, written before the cloud acts on anything.

A row is added once and never changed by a repeated message: an upload that was accepted stays the accepted one, a
finished outer round is not done again, a finished job is not counted twice. Any SQLAlchemy URL works; the default is a
SQLite file in the run's own folder. Large things (training states, students) are files beside it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from sqlalchemy import Table, create_engine, delete, event, insert, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from fedstill.cloud_server.distillation.selection import Selection
from fedstill.cloud_server.journal.fleet_state import ONLINE
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.tables import (
    BAD_CLIPS,
    FAILURES,
    JOBS,
    NODES,
    PRIVACY,
    ROUNDS,
    SELECTIONS,
    STUDENTS,
    TRAFFIC,
    UPLOADS,
)
from fedstill.cloud_server.journal.teachers import Teachers
from fedstill.cloud_server.journal.visits import Visits
from fedstill.cloud_server.migrations.upgrade import JOURNAL, NewerSchema, upgrade
from fedstill.common.errors import RunError, first_line
from fedstill.common.run_layout import JOURNAL_FILE
from fedstill.protos.messages import PrototypeUpload

BUSY_SECONDS = 30.0
"""A status command may read while the cloud writes."""

Arrays = dict[str, npt.NDArray[Any]]


class JournalError(RunError):
    """The journal cannot be opened or read; one line."""


@dataclass(frozen=True)
class PrivacyGuarantee:
    """The privacy guarantee of an upload: its kind, and (epsilon, delta) if that is ``dp``, else 0."""

    kind: str
    epsilon: float = 0.0
    delta: float = 0.0


@dataclass(frozen=True)
class FinishedRound:
    """One outer round that need not be done again."""

    round: int
    losses: list[float]
    class_counts: list[int]
    state_file: str


class Journal:
    """Thread-safe; every method is one transaction, which is on disk when it returns.

    Raises:
        JournalError: the database cannot be reached, is of another kind, or a newer fedstill's.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = _engine(url)
            upgrade(self._engine, JOURNAL)
        except (SQLAlchemyError, ImportError, NewerSchema) as error:
            raise JournalError(f"journal {_without_password(url)}: {first_line(error)}") from error

    def close(self) -> None:
        self._engine.dispose()

    @property
    def visits(self) -> Visits:
        """When each device was given a student, and who asked for another."""
        return Visits(self._engine)

    @property
    def teachers(self) -> Teachers:
        """The service's teachers."""
        return Teachers(self._engine)

    # Jobs and their outer rounds.

    def finish_job(self, key: JobKey, record: Mapping[str, Any]) -> None:
        """Keep a finished job's record; the first one stays."""
        row = {"job": key.text, "client": key.client, "seed": key.seed, "record": dict(record)}
        self._add_once(JOBS, {**row, "finished": time.time()})

    def jobs(self) -> list[dict[str, Any]]:
        """The records of all finished jobs, in the order in which they finished."""
        with self._engine.connect() as connection:
            return list(connection.scalars(select(JOBS.c.record).order_by(JOBS.c.finished)))

    def finish_round(
        self, key: JobKey, outer_epoch: int, losses: list[float], class_counts: list[int], state_file: str
    ) -> None:
        """Keep one trained outer round; ``state_file`` is already on disk."""
        row = {"job": key.text, "round": outer_epoch, "losses": losses, "class_counts": class_counts}
        self._add_once(ROUNDS, {**row, "state_file": state_file, "finished": time.time()})

    def rounds(self, key: JobKey) -> list[FinishedRound]:
        """The finished outer rounds of a job, oldest first."""
        wanted = select(ROUNDS).where(ROUNDS.c.job == key.text).order_by(ROUNDS.c.round)
        with self._engine.connect() as connection:
            return [
                FinishedRound(row.round, row.losses, row.class_counts, row.state_file)
                for row in connection.execute(wanted)
            ]

    def fail(self, key: JobKey, outer_epoch: int, record: Mapping[str, Any]) -> None:
        """Keep why a device was left out of an outer round."""
        row = {"job": key.text, "round": outer_epoch, "record": dict(record), "at": time.time()}
        self._add_once(FAILURES, row)

    def forget_failures(self, key: JobKey) -> None:
        """A resumed job may succeed where it failed before, in the outer rounds that it has not finished."""
        finished = select(ROUNDS.c.round).where(ROUNDS.c.job == key.text)
        with self._engine.begin() as connection:
            last = max(connection.scalars(finished), default=-1)
            connection.execute(delete(FAILURES).where(FAILURES.c.job == key.text, FAILURES.c.round > last))

    def failures(self) -> list[dict[str, Any]]:
        """Every outer round that a device was left out of."""
        with self._engine.connect() as connection:
            return list(connection.scalars(select(FAILURES.c.record).order_by(FAILURES.c.at)))

    # What devices sent, and what was selected for it.

    def accept_upload(
        self, key: JobKey, outer_epoch: int, upload: PrototypeUpload, guarantee: PrivacyGuarantee
    ) -> PrototypeUpload:
        """Keep an upload and its line of the privacy ledger; returns the upload that counts, which is the first."""
        where = {"job": key.text, "round": outer_epoch, "client": key.client}
        clips, now = int(upload.counts.sum()), time.time()
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(UPLOADS).values(**where, content=_packed(upload), accepted=now))
                connection.execute(
                    insert(PRIVACY).values(**where, **asdict(guarantee), clips=clips, released=now)
                )
        except IntegrityError:
            earlier = self.upload(key, outer_epoch)
            assert earlier is not None
            return earlier
        return upload

    def upload(self, key: JobKey, outer_epoch: int) -> PrototypeUpload | None:
        """The accepted upload of one outer round, or None."""
        wanted = select(UPLOADS.c.content).where(UPLOADS.c.job == key.text, UPLOADS.c.round == outer_epoch)
        with self._engine.connect() as connection:
            content = connection.scalar(wanted)
        return None if content is None else _unpacked(content, key, outer_epoch)

    def uploaded(self) -> list[tuple[str, int, int]]:
        """(job, round, client) of every accepted upload."""
        wanted = select(UPLOADS.c.job, UPLOADS.c.round, UPLOADS.c.client).order_by(UPLOADS.c.accepted)
        with self._engine.connect() as connection:
            return [(row.job, row.round, row.client) for row in connection.execute(wanted)]

    def select(self, key: JobKey, outer_epoch: int, selection: Selection) -> None:
        """Keep which public clips an outer round was trained on."""
        arrays: Arrays = {"positions": selection.positions, "weights": selection.weights}
        content = safetensors.numpy.save(arrays)
        row = {"job": key.text, "round": outer_epoch, "content": content}
        self._add_once(SELECTIONS, {**row, "chosen": time.time()})

    def selection(self, key: JobKey, outer_epoch: int) -> Selection | None:
        """The public clips of one outer round, or None."""
        wanted = select(SELECTIONS.c.content)
        wanted = wanted.where(SELECTIONS.c.job == key.text, SELECTIONS.c.round == outer_epoch)
        with self._engine.connect() as connection:
            content = connection.scalar(wanted)
        if content is None:
            return None
        found = safetensors.numpy.load(content)
        return Selection(found["positions"], found["weights"])

    def keep_student(self, key: JobKey, version: str, file: str, size: int) -> None:
        """Record the content-addressed file that holds a job's student of ``size`` bytes."""
        row = {"job": key.text, "version": version, "file": file, "bytes": size, "made": time.time()}
        self._add_once(STUDENTS, row)

    def students(self) -> list[dict[str, Any]]:
        """job, version (hash of the content), file and bytes of every kept student."""
        columns = STUDENTS.c.job, STUDENTS.c.version, STUDENTS.c.file, STUDENTS.c.bytes
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(*columns))]

    def privacy(self) -> list[dict[str, Any]]:
        """The privacy ledger, oldest release first."""
        columns = [column for column in PRIVACY.c if column.name != "released"]
        with self._engine.connect() as connection:
            rows = connection.execute(select(*columns).order_by(PRIVACY.c.released))
            return [dict(row._mapping) for row in rows]

    def spend(self, key: JobKey, outer_epoch: int, action: str, up_bytes: int, down_bytes: int) -> None:
        """Add a line to the traffic ledger: the cost of an answered request, also if its answer came twice."""
        row = {"job": key.text, "client": key.client, "round": outer_epoch, "action": action}
        with self._engine.begin() as connection:
            connection.execute(
                insert(TRAFFIC).values(**row, up_bytes=up_bytes, down_bytes=down_bytes, at=time.time())
            )

    def traffic(self, key: JobKey) -> list[dict[str, int]]:
        """The ledger's lines of one job: round, up_bytes, down_bytes."""
        wanted = select(TRAFFIC.c.round, TRAFFIC.c.up_bytes, TRAFFIC.c.down_bytes)
        wanted = wanted.where(TRAFFIC.c.job == key.text).order_by(TRAFFIC.c.row)
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(wanted)]

    # Who is online.

    def see_node(self, client: int, node: str, name: str, version: str, state: str) -> None:
        """Record the state of a client's device; ``since`` changes when the state does."""
        now = time.time()
        values = {"node": node, "name": name, "version": version, "state": state, "seen": now}
        with self._engine.begin() as connection:
            before = connection.execute(select(NODES.c.state).where(NODES.c.client == client)).scalar()
            if before is None:
                connection.execute(insert(NODES).values(client=client, since=now, **values))
                return
            since = {} if before == state else {"since": now}
            connection.execute(update(NODES).where(NODES.c.client == client).values(**values, **since))

    def online_nodes(self) -> dict[int, str]:
        """The node of each client that was online when that was last noted."""
        wanted = select(NODES.c.client, NODES.c.node).where(NODES.c.state.in_(ONLINE))
        with self._engine.connect() as connection:
            return {row.client: row.node for row in connection.execute(wanted)}

    def lose_node(self, client: int) -> None:
        """Record that a client's device is gone; it was last seen when that was last noted."""
        with self._engine.begin() as connection:
            connection.execute(
                update(NODES).where(NODES.c.client == client).values(state="dead", since=time.time())
            )

    def see_bad_clips(self, client: int, faults: Mapping[str, int]) -> None:
        """Record how many clips of a client's device cannot be used now, by kind of fault."""
        values = {"faults": dict(faults), "told": time.time()}
        with self._engine.begin() as connection:
            place = BAD_CLIPS.c.client == client
            before = connection.execute(select(BAD_CLIPS.c.faults).where(place)).first()
            if before is None:
                connection.execute(insert(BAD_CLIPS).values(client=client, **values))
            elif before.faults != values["faults"]:
                connection.execute(update(BAD_CLIPS).where(place).values(**values))

    def _add_once(self, table: Table, row: Mapping[str, Any]) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(table).values(**row))
        except IntegrityError:
            return  # it exists already, and the first one counts


def open_journal(work: Path, url: str = "") -> Journal:
    """The journal of a run directory: its own SQLite file, or ``url``."""
    return Journal(url or f"sqlite:///{work / JOURNAL_FILE}")


def _packed(upload: PrototypeUpload) -> bytes:
    names = ("probabilities", "counts", "confidence", "card")
    arrays: Arrays = {name: getattr(upload, name) for name in names}
    return safetensors.numpy.save(arrays, metadata={"class_names": json.dumps(upload.class_names)})


def _unpacked(content: bytes, key: JobKey, outer_epoch: int) -> PrototypeUpload:
    arrays = safetensors.numpy.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names = tuple(json.loads(header["__metadata__"]["class_names"]))
    confidence = arrays.get("confidence", np.empty(0, np.float32))  # older journals have neither
    card = arrays.get("card", np.empty(0, np.uint8))
    return PrototypeUpload(
        key.at(outer_epoch), arrays["probabilities"], arrays["counts"], names, confidence, card
    )


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        _use_write_ahead_log(connection)

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Readers do not wait for the writer. SQLite never waits to switch a new file, so that we do."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _without_password(url: str) -> str:
    return url if "@" not in url else f"{url.split('://')[0]}://...@{url.rsplit('@', 1)[1]}"
