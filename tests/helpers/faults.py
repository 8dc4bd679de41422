"""The fleet that the fault tests disturb, and what must hold afterwards, whatever was done to it.

A fleet costs half a minute of processor time before its first message, so each file of fault tests disturbs one fleet
again and again, with work under way each time, and looks at the whole at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedstill.simulation.gather import gather_rows
from helpers.fleet import Fleet, Service

ARM = "all_distill_select"
SCENARIOS = ("latency_insensitive", "latency_sensitive")
ROUNDS = 3
SETTINGS = (
    f"distillation.outer_epochs={ROUNDS}",
    f"fedstill.outer_epochs={ROUNDS}",
    "run.reply_timeout=400",
)


def is_whole(fleet: Fleet, undisturbed: Path, *clients: int, scenarios: Collection[str] = SCENARIOS) -> None:
    """The table is that of an undisturbed run, and every upload was accepted exactly once."""
    expected, found = gather_rows(undisturbed), gather_rows(fleet.state)
    for name in ("rows", "selection"):
        assert [row for row in found[name] if row.client in clients] == [
            row for row in expected[name] if row.client in clients and row.scenario in scenarios
        ], name
    wanted_losses = {key: loss for key, loss in losses(expected, clients).items() if key[0] in scenarios}
    assert losses(found, clients) == pytest.approx(wanted_losses, rel=1e-4)
    wanted = {
        (f"{scenario}/{ARM}/client{client}/seed0", outer_epoch, client): 1
        for scenario in scenarios
        for client in clients
        for outer_epoch in range(ROUNDS)
    }
    assert Counter(one for one in fleet.uploads() if one[2] in clients) == wanted


def finishes(fleet: Fleet, coordinator: Service) -> None:
    assert coordinator.ended() == 0, coordinator.said()
    assert "Traceback" not in "".join(service.said() for service in fleet.services)


def busy(agent: Service) -> list[psutil.Process]:
    """The ClientApp that handles a message at this moment."""
    return agent.children("flwr-clientapp")


def at_work(agent: Service) -> list[psutil.Process]:
    """The children of its warm process, which do what those hand over."""
    return [one for one in agent.children("node.warm_start") if one.ppid() != agent.process.pid]


def uploads_of(fleet: Fleet, client: int) -> int:
    """Accepted so far."""
    return sum(upload[2] == client for upload in fleet.uploads())


def jobs_of(fleet: Fleet, client: int) -> int:
    """Done so far."""
    return sum(job["client"] == client for job in fleet.events("job"))


def goes_on(fleet: Fleet) -> None:
    """Wait until one more upload is accepted, in the middle of the jobs: not all work is done."""
    before = len(fleet.uploads())
    fleet.wait_for(lambda: len(fleet.uploads()) > before, "one more accepted upload")
    assert len(fleet.uploads()) < 2 * len(SCENARIOS) * ROUNDS, "there is nothing left to disturb"


def one_line(service: Service) -> str:
    """The tail of a service's log, with the reason why it stopped."""
    return service.said().strip().splitlines()[-1]


def losses(tables: Mapping[str, tuple[Any, ...]], clients: Collection[int]) -> dict[tuple[Any, ...], float]:
    """By what each loss belongs to, which is all but its last column."""
    return {astuple(row)[:-1]: row.loss for row in tables["losses"] if row.client in clients}
