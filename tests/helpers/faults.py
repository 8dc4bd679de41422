"""The fleet that the fault tests disturb, and the conditions that must hold after every fault."""

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
ROUNDS = 2
SETTINGS = (
    f"distillation.outer_epochs={ROUNDS}",
    f"fedstill.outer_epochs={ROUNDS}",
    'run.scenarios=["latency_sensitive"]',
    "run.reply_timeout=400",
)
JOBS = [f"latency_sensitive/{ARM}/client{client}/seed0" for client in (0, 1)]


def is_whole(fleet: Fleet, undisturbed: Path, *clients: int) -> None:
    """The table is that of an undisturbed run, and every upload was accepted exactly once."""
    expected, found = gather_rows(undisturbed), gather_rows(fleet.state)
    for name in ("rows", "selection"):
        assert [row for row in found[name] if row.client in clients] == [
            row for row in expected[name] if row.client in clients
        ], name
    assert losses(found, clients) == pytest.approx(losses(expected, clients), rel=1e-4)
    wanted = {(JOBS[client], outer_epoch, client): 1 for client in clients for outer_epoch in range(ROUNDS)}
    assert Counter(one for one in fleet.uploads() if one[2] in clients) == wanted


def finishes(fleet: Fleet, coordinator: Service) -> None:
    assert coordinator.ended() == 0, coordinator.said()
    assert "Traceback" not in "".join(service.said() for service in fleet.services)


def busy(agent: Service) -> list[psutil.Process]:
    """The ClientApp that handles a message at this moment."""
    return agent.children("flwr-clientapp")


def training(fleet: Fleet) -> bool:
    """Somewhere in the middle of the jobs: one upload is accepted, not all work is done."""
    return len(fleet.uploads()) >= 1


def one_line(service: Service) -> str:
    """The tail of a service's log, with the reason why it stopped."""
    return service.said().strip().splitlines()[-1]


def losses(tables: Mapping[str, tuple[Any, ...]], clients: Collection[int]) -> dict[tuple[Any, ...], float]:
    """By what each loss belongs to, which is all but its last column."""
    return {astuple(row)[:-1]: row.loss for row in tables["losses"] if row.client in clients}
