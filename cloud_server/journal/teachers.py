"""A service's teachers, in the journal's database: their numbers, and which weights they are."""

from __future__ import annotations

import time

from sqlalchemy import insert, select
from sqlalchemy.engine import Engine

from fedstill.cloud_server.journal.tables import TEACHERS


class Teachers:
    """The teachers in a journal's database; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def note(self, number: int, digest: str) -> bool:
        """Note that a teacher is made; returns whether that is news. The first note of a number stays."""
        with self._engine.begin() as connection:
            if connection.execute(select(TEACHERS.c.number).where(TEACHERS.c.number == number)).first():
                return False
            connection.execute(insert(TEACHERS).values(number=number, digest=digest, made=time.time()))
        return True
