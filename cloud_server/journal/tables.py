"""The journal's tables, as the newest revision in ``cloud_server/migrations/journal`` leaves them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column, Float, Integer, LargeBinary, MetaData, String, Table

tables = MetaData()


def _table(name: str, *columns: Column[Any]) -> Table:
    return Table(name, tables, *columns)


def _text(name: str, **options: Any) -> Column[Any]:
    return Column(name, String(200), **options)


def _number(name: str, **options: Any) -> Column[Any]:
    return Column(name, Integer, **options)


def _time(name: str) -> Column[Any]:
    return Column(name, Float, nullable=False)


NODES = _table(
    "nodes", _number("client", primary_key=True, autoincrement=False), _text("node"), _text("name"), _text("version"),
    _text("state"), _time("since"), _time("seen"),
)  # fmt: skip
JOBS = _table(
    "jobs", _text("job", primary_key=True), _number("client"), _number("seed"), Column("record", JSON),
    _time("finished"),
)  # fmt: skip
ROUNDS = _table(
    "rounds", _text("job", primary_key=True), _number("round", primary_key=True, autoincrement=False),
    Column("losses", JSON), Column("class_counts", JSON), _text("state_file"), _time("finished"),
)  # fmt: skip
UPLOADS = _table(
    "uploads", _text("job", primary_key=True), _number("round", primary_key=True, autoincrement=False),
    _number("client"), Column("content", LargeBinary), _time("accepted"),
)  # fmt: skip
SELECTIONS = _table(
    "selections", _text("job", primary_key=True), _number("round", primary_key=True, autoincrement=False),
    Column("content", LargeBinary), _time("chosen"),
)  # fmt: skip
STUDENTS = _table(
    "students", _text("job", primary_key=True), _text("version"), _text("file"), _number("bytes"), _time("made"),
)  # fmt: skip
TRAFFIC = _table(
    "traffic", _number("row", primary_key=True), _text("job"), _number("client"), _number("round"), _text("action"),
    _number("up_bytes"), _number("down_bytes"), _time("at"),
)  # fmt: skip
PRIVACY = _table(
    "privacy", _text("job", primary_key=True), _number("round", primary_key=True, autoincrement=False),
    _number("client"), _text("kind"), _number("clips"), Column("epsilon", Float), Column("delta", Float),
    _time("released"),
)  # fmt: skip
VISITS = _table(
    "visits", _number("client", primary_key=True, autoincrement=False),
    _number("visit", primary_key=True, autoincrement=False), _text("cause"), _text("device"), _text("outcome"),
    Column("reason", String(1000)), _text("student"), _number("attempts"), _time("started"), Column("ended", Float),
    _number("teacher", nullable=False, server_default="1"),
)  # fmt: skip
TEACHERS = _table(
    "teachers", _number("number", primary_key=True, autoincrement=False), _text("digest"), _time("made"),
)  # fmt: skip
REQUESTS = _table("requests", _number("row", primary_key=True), _number("client"), _time("asked"))
BAD_CLIPS = _table(
    "bad_clips", _number("client", primary_key=True, autoincrement=False), Column("faults", JSON), _time("told"),
)  # fmt: skip
FAILURES = _table(
    "failures", _text("job", primary_key=True), _number("round", primary_key=True, autoincrement=False),
    Column("record", JSON), _time("at"),
)  # fmt: skip
