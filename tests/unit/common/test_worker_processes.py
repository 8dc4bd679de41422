"""An item that kills its process is named, and all others are done."""

from __future__ import annotations

import sys
import time
from itertools import count
from multiprocessing.context import SpawnProcess

import pytest
from helpers.deadly_work import double

from fedstill.common.worker_processes import NoProcess, in_parallel


def lost(item: int) -> int:
    return 1000 + item


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(in_parallel(double, range(30), workers, lost)) == list(range(0, 60, 2))


def test_an_item_that_kills_its_process_is_lost_and_no_other() -> None:
    items = list(range(40))
    items[3], items[25], items[39] = -3, -25, -39
    results = list(in_parallel(double, items, 2, lost))
    assert results == [1000 + item if item < 0 else 2 * item for item in items]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("before", [True, False])
def test_a_process_that_starts_while_another_dies(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    start, starts = SpawnProcess.start, count()

    def late(process: SpawnProcess) -> None:
        second = next(starts) == 1
        if second and before:
            time.sleep(1)
        start(process)
        if second and not before:
            time.sleep(1)

    monkeypatch.setattr(SpawnProcess, "start", late)
    items = [-1, *range(1, 12)]
    assert list(in_parallel(double, items, 2, lost)) == [999, *range(2, 24, 2)]


def test_processes_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: b"/bin/false")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NoProcess, match="no worker process can be started: run again with one worker"):
        list(in_parallel(double, range(4), 2, lost))
