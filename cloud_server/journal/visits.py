"""A service's memory: the visits of its devices, and what an operator asked for, in the journal's database."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Engine

from fedstill.cloud_server.journal.tables import REQUESTS, VISITS
from fedstill.cloud_server.journal.visit import DONE, Visit


class Visits:
    """The visits and requests in a journal's database; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def newest(self) -> dict[int, Visit]:
        """The newest visit of each client."""
        last = (
            select(VISITS.c.client, func.max(VISITS.c.visit).label("visit"))
            .group_by(VISITS.c.client)
            .subquery()
        )
        wanted = select(VISITS).join(
            last, (last.c.client == VISITS.c.client) & (last.c.visit == VISITS.c.visit)
        )
        with self._engine.connect() as connection:
            return {row.client: Visit(**row._mapping) for row in connection.execute(wanted)}

    def asked(self) -> dict[int, float]:
        """When each client's newest request was made."""
        wanted = select(REQUESTS.c.client, func.max(REQUESTS.c.asked)).group_by(REQUESTS.c.client)
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(wanted)}

    def ask(self, clients: Collection[int]) -> None:
        """An operator wants these clients' devices to get a new student."""
        rows = [{"client": client, "asked": time.time()} for client in clients]
        if rows:
            with self._engine.begin() as connection:
                connection.execute(insert(REQUESTS), rows)

    def begin(self, visit: Visit) -> Visit:
        """Note that an attempt begins; returns it as it is noted.

        A request counts as made before, also if a clock that was ahead has dated it.
        """
        started = max(time.time(), self.asked().get(visit.client, 0.0))
        begun = replace(visit, outcome="", reason="", started=started, ended=None)
        self._write(begun)
        return begun

    def end(self, visit: Visit, outcome: str, reason: str, student: str) -> Visit:
        """Note how the attempt ended; returns it as it is noted."""
        attempts = 0 if outcome in DONE else visit.attempts + 1
        ended = replace(
            visit,
            outcome=outcome,
            reason=reason[:1000],
            student=student,
            attempts=attempts,
            ended=time.time(),
        )
        self._write(ended)
        return ended

    def _write(self, visit: Visit) -> None:
        values: Mapping[str, Any] = {
            name: getattr(visit, name) for name in (column.name for column in VISITS.c)
        }
        place = (VISITS.c.client == visit.client) & (VISITS.c.visit == visit.visit)
        with self._engine.begin() as connection:
            if not connection.execute(update(VISITS).where(place).values(**values)).rowcount:
                connection.execute(insert(VISITS).values(**values))
