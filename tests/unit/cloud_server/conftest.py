"""PostgreSQL of the tests' own on loopback, a new, empty database in it for each test, and a journal in either."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from fedstill.cloud_server.journal.journal import Journal
from fedstill.common.flower_cli import free_port

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's URL without a database; PostgreSQL refuses to run as root, so it gets a user."""
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or next((str(one / "initdb") for one in reversed(tools)), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (initdb not found)")
    folder, port = tmp_path_factory.mktemp("postgresql"), free_port()
    who = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if who:
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(folder, "postgres")
    data, bin_folder = folder / "data", Path(found).parent
    made = subprocess.run(
        [*who, found, "-D", str(data), "-A", "trust", "-U", "fedstill", "-N"], capture_output=True, text=True,
        cwd=folder, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip(f"PostgreSQL cannot be set up here: {made.stderr.strip().splitlines()[-1:]}")
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*who, str(bin_folder / "postgres"), "-D", str(data), *options],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    url = f"postgresql+psycopg://fedstill@127.0.0.1:{port}"
    try:
        _wait_for(url, folder / "log")
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """The URL of a new, empty database."""
    name = f"test_{next(_numbers)}"
    _run(postgresql_server, f"CREATE DATABASE {name}")
    return f"{postgresql_server}/{name}"


def _wait_for(url: str, log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            _run(url, "SELECT 1")
        except OperationalError:
            if time.monotonic() > end:
                raise AssertionError(log.read_text()) from None
            time.sleep(0.2)
        else:
            return


def _run(server: str, statement: str) -> None:
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    """A new one, in a SQLite file and in PostgreSQL."""
    sqlite = f"sqlite:///{tmp_path / 'journal.db'}"
    made = Journal(sqlite if request.param == "sqlite" else request.getfixturevalue("postgresql"))
    yield made
    made.close()
