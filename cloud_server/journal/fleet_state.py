"""What an operator wants to know of a fleet: of every device, whether it is there, and what became of its student.

It is read from the coordinator's folder, whether the coordinator runs or not. A SQLite journal is opened to read only,
with Python's own module: neither torch nor SQLAlchemy is loaded, for this is asked often and on small machines.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from fedstill.cloud_server.journal.traffic import wire_bytes
from fedstill.cloud_server.journal.visit import KEPT, LOST, SERVED, Visit
from fedstill.common.errors import ConfigError, RunError, first_line
from fedstill.common.folder_lock import in_use
from fedstill.common.run_layout import JOURNAL_FILE, LOOKED_FILE, PLAN_FILE, STATUS_FILE, TRAFFIC_FILE

ONLINE = ("connected", "revived", "late")
LOOKED_SECONDS = 20.0
"""The nodes are looked at once a second. Without a look for so long, nobody knows who is online: Flower's process has
died, or is starting."""

NODES = """SELECT n.*, t.up_bytes, t.down_bytes FROM nodes n LEFT JOIN (
    SELECT client, sum(up_bytes) AS up_bytes, sum(down_bytes) AS down_bytes FROM traffic GROUP BY client
) t ON t.client = n.client"""
PLACES = """SELECT client, job, round FROM traffic WHERE "row" IN (SELECT max("row") FROM traffic GROUP BY client)"""
RECORDS = """SELECT j.client, j.record, c.jobs_done FROM jobs j JOIN (
    SELECT client, max(finished) AS newest, count(*) AS jobs_done FROM jobs GROUP BY client
) c ON c.client = j.client AND c.newest = j.finished"""
VISITS = """SELECT v.* FROM visits v JOIN (
    SELECT client, max(visit) AS newest FROM visits GROUP BY client
) l ON l.client = v.client AND l.newest = v.visit"""
INSTALLED = """SELECT v.* FROM visits v JOIN (
    SELECT client, max(visit) AS newest FROM visits WHERE outcome = 'served' GROUP BY client
) l ON l.client = v.client AND l.newest = v.visit"""
TEACHERS = "SELECT number, digest, made FROM teachers"
BAD_CLIPS = "SELECT client, faults FROM bad_clips"

Row = dict[str, Any]


class Asked(Protocol):
    """Answers a query with rows by column name; implemented by the two functions below."""

    def __call__(self, query: str) -> list[Row]: ...


def read_fleet(state: Path, plan: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``run``, ``clients``, ``free_bytes`` of the disk, ``teacher`` and ``devices``.

    The teacher has its ``number``, from 1, and if it is made its ``digest`` and since when (``made``), else None.

    There is one row per client, those that were never online included.

    A row has the node's columns of the journal, ``up_bytes`` and ``down_bytes``, which are contents of messages, and
    ``wire_up_bytes`` and ``wire_down_bytes``, with all polls and headers, None if the proxy does not know the device;
    of the newest job its ``job``, ``round``, ``accuracy``, ``class_mix`` and ``choice``, and ``jobs_done``; ``link``
    (``online``, ``late``, ``offline``, ``never online``, ``revoked``, or ``unknown`` if no coordinator looks after it);
    its ``tags``; of the newest visit ``visit``, ``doing`` in words and ``next_attempt``; ``in_use``, the device's
    student: its ``number`` among those that its client was given, from 1, the number of its ``teacher`` and its
    ``version``, None without one; ``bad_clips``, how many clips the device left out when it was last asked, by kind of
    fault (``datasets/files/faults.py``).

    Args:
        state: the coordinator's folder.
        plan: ``plan_of`` it, if that is known.

    Raises:
        ConfigError: no coordinator's folder.
        RunError: its journal cannot be read.
    """
    plan, running = plan if plan is not None else plan_of(state), in_use(state)
    with _journal(state, plan["journal"]) as asked:
        nodes = {row["client"]: row for row in asked(NODES)}
        places = {row["client"]: row for row in asked(PLACES)}
        records = {row["client"]: row for row in asked(RECORDS)}
        visits = {row["client"]: Visit(**row) for row in _newer(asked, VISITS)}
        installed = {row["client"]: Visit(**row) for row in _newer(asked, INSTALLED)}
        teachers = {row.pop("number"): row for row in _newer(asked, TEACHERS)}
        bad = {row["client"]: _from_json(row["faults"]) for row in _newer(asked, BAD_CLIPS)}
    number, wire = plan.get("teacher_number", 1), wire_bytes(state / TRAFFIC_FILE)
    devices, looked = [], running and _is_looked_after(state)
    for client in range(plan["clients"]):
        name = plan["devices"][client] if plan["devices"] else ""
        row = nodes.get(client) or _never_seen(client, name)
        row |= _newest(places.get(client), records.get(client))
        visit = visits.get(client)
        row["link"] = "revoked" if plan["devices"] and not name else _link(row["state"], looked)
        row["tags"] = dict(enumerate(plan.get("tags", ()))).get(client, [])
        row["visit"] = asdict(visit) if visit else None
        row["doing"] = _doing(visit, running)
        row["next_attempt"] = visit.next_attempt(plan.get("pause_scale", 1.0)) if visit else None
        row["in_use"] = _in_use(installed.get(client), visit, name)
        row["bad_clips"] = bad.get(client, {})
        keys = dict(enumerate(plan.get("keys", ()))).get(client, [])
        row["wire_up_bytes"], row["wire_down_bytes"] = wire(keys)
        devices.append(row)
    return {
        "run": _run(state, running),
        "clients": plan["clients"],
        "free_bytes": shutil.disk_usage(state).free,
        "teacher": {"number": number, **teachers.get(number, {"digest": None, "made": None})},
        "devices": devices,
    }


def plan_of(state: Path) -> dict[str, Any]:
    """The run plan as JSON. Raises ConfigError if there is none."""
    path = state / PLAN_FILE
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(plan["journal"], str) or not isinstance(plan.get("tags", []), list):
            raise TypeError("journal or tags are of another type")
        if plan["devices"] and len(plan["devices"]) < plan["clients"]:
            raise ValueError(f"{len(plan['devices'])} names for {plan['clients']} clients")
    except (FileNotFoundError, NotADirectoryError):
        if in_use(state):
            raise ConfigError(f"{state}: its coordinator is starting; ask again in a moment") from None
        raise ConfigError(
            f"{state}: not a coordinator's folder; start one with: fedstill coordinator --state {state}"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged ({error}): put back a copy of this folder") from error
    return plan


def clients_named(plan: Mapping[str, Any], names: Sequence[str], tag: str = "") -> list[int]:
    """The clients of these devices, or of those with the tag; of all of them if neither is given.

    Raises:
        ConfigError: there is no such device, or none with the tag.
    """
    if tag:
        tagged = [client for client, tags in enumerate(plan.get("tags", ())) if tag in tags]
        if not tagged:
            tags = sorted({one for tags in plan.get("tags", ()) for one in tags})
            raise ConfigError(f"--tag {tag}: no device has it; known: {', '.join(tags) or 'none'}")
        return tagged
    known = {name: client for client, name in enumerate(plan["devices"]) if name}
    if not plan["devices"]:  # without credentials they have numbers only
        known = {str(client): client for client in range(plan["clients"])}
    for name in names:
        if name not in known:
            raise ConfigError(f"{name}: no such device; known: {', '.join(known) or 'none'}")
    return [known[name] for name in names or known]


@contextmanager
def _journal(state: Path, url: str) -> Iterator[Asked]:
    """The journal, to be read only."""
    path = state / JOURNAL_FILE if not url else Path(url.removeprefix("sqlite:///"))
    if url and not url.startswith("sqlite:///"):
        with _by_sqlalchemy(url) as asked:
            yield asked
        return
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30.0)
    except sqlite3.Error as error:
        raise RunError(f"journal {path}: {error}") from error
    connection.row_factory = sqlite3.Row

    def ask(query: str) -> list[Row]:
        try:
            return [dict(row) for row in connection.execute(query)]
        except sqlite3.DatabaseError as error:
            raise RunError(f"journal {path}: {error}") from error

    try:
        yield ask
    finally:
        connection.close()


@contextmanager
def _by_sqlalchemy(url: str) -> Iterator[Asked]:
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(url)
    except (ImportError, SQLAlchemyError) as error:  # no driver of the database, or no URL of one
        raise RunError(f"journal: {first_line(error)}") from error
    try:
        with engine.connect() as connection:

            def ask(query: str) -> list[Row]:
                try:
                    return [dict(row._mapping) for row in connection.execute(text(query))]
                except SQLAlchemyError as error:
                    connection.rollback()  # else no later query is answered
                    raise RunError(f"journal: {first_line(error)}") from error

            yield ask
        engine.dispose()
    except SQLAlchemyError as error:
        raise RunError(f"journal: {first_line(error)}") from error


def _newer(asked: Asked, query: str) -> list[Row]:
    """The rows of a table that is not in a journal which only an older fedstill has opened so far."""
    try:
        return asked(query)
    except RunError as error:
        if "no such table" in str(error) or "does not exist" in str(error):  # SQLite, PostgreSQL
            return []
        raise


def _newest(place: Row | None, record: Row | None) -> Row:
    """Of the newest job that has begun, and of the newest one that is finished."""
    content = _from_json(record["record"]) if record else {}
    counts = content["evaluations"][-1] if content.get("evaluations") else None
    return {
        "job": place["job"] if place else "",
        "round": place["round"] if place else None,
        "accuracy": counts["correct"] / counts["total"] if counts else None,
        "class_mix": content.get("class_mix"),
        "choice": content.get("choice"),
        "jobs_done": record["jobs_done"] if record else 0,
    }


def _from_json(value: Any) -> dict[str, Any]:
    """A JSON column: SQLite has text, PostgreSQL the value."""
    found: dict[str, Any] = value if isinstance(value, dict) else json.loads(value)
    return found


def _never_seen(client: int, name: str) -> Row:
    return {
        "client": client, "node": "", "name": name, "version": "", "state": "", "since": None, "seen": None,
        "up_bytes": None, "down_bytes": None,
    }  # fmt: skip


def _is_looked_after(state: Path) -> bool:
    """Whether what the journal says of nodes is what Flower says of them."""
    try:
        return abs(time.time() - (state / LOOKED_FILE).stat().st_mtime) < LOOKED_SECONDS
    except OSError:
        return False


def _link(state: str, looked: bool) -> str:
    if not state:
        return "never online"
    if not looked:
        return "unknown"
    if state == "late":
        return "late"
    return "online" if state in ONLINE else "offline"


def _doing(visit: Visit | None, running: bool) -> str:
    """In words what became of the device's student."""
    if visit is None:
        return "no student yet"
    if visit.outcome == SERVED:
        return "served"
    if visit.outcome == KEPT:
        return "keeps its student"
    if visit.outcome:
        return f"{visit.outcome}: {visit.reason}"
    return "being personalised" if running else "interrupted"


def _in_use(served: Visit | None, newest: Visit | None, name: str) -> Row | None:
    """The student that a device was given last, unless it is another device now, or does not have it any more."""
    if served is None or newest is None or served.device != name:
        return None
    if newest.student not in ("", served.student) or (newest.outcome != SERVED and newest.cause == LOST):
        return None
    return {"number": served.visit + 1, "teacher": served.teacher, "version": served.student}


def _run(state: Path, running: bool) -> str:
    path = state / STATUS_FILE
    try:
        said = str(json.loads(path.read_text())["run"])
    except FileNotFoundError:
        said = "never started"
    except (OSError, ValueError, TypeError, KeyError):
        said = "unknown"
    if running and said in ("stopped", "never started"):
        return "starting"
    return "interrupted; the coordinator is not running" if said == "running" and not running else said
