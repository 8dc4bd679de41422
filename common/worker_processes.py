"""Work on many items in several processes; one that kills its process (as a decoder may) costs that item alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

CHUNK = 4  # items that a process takes at a time
SUSPECTS = 2 * CHUNK  # per process: after a death, so many are tried one by one


class NoProcess(Exception):
    """New processes die at once, so that nothing can be said of the items."""


T = TypeVar("T")
R = TypeVar("R")


def in_parallel(
    work: Callable[[T], R], items: Sequence[T], workers: int, lost: Callable[[T], R]
) -> Generator[R, None, None]:
    """The results in order. On an interrupt the items in progress are finished and no others are begun.

    Args:
        work: a function that a new process can import.
        items: each is given to ``work`` once, or again after a process died.
        workers: processes; with 1, all is done in this one.
        lost: gives the result of an item at which the process dies.

    Raises:
        NoProcess: no process can be started.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    while items:
        done = yield from _until_a_death(work, items, workers, CHUNK)
        items = items[done:]
        suspects, items = items[: SUSPECTS * workers], items[SUSPECTS * workers :]
        while suspects:
            done = yield from _until_a_death(work, suspects, 1, 1)
            if done < len(suspects):
                yield lost(suspects[done])
            suspects = suspects[done + 1 :]


def _until_a_death(
    work: Callable[[T], R], items: Sequence[T], workers: int, chunk: int
) -> Generator[R, None, int]:
    """Yield results until all are there or a process has died; return how many there were."""
    done = 0
    # Spawned, because a process that has threads (PyTorch's, a progress bar's) must not be forked.
    begun = _Begun()
    pool = ProcessPoolExecutor(workers, begun)
    try:
        with _interrupts_blocked():
            _check_start(pool)
            results = _submitted(pool, work, items, chunk)
        for result in results:
            yield result
            done += 1
    except BrokenProcessPool:
        begun.kill()
    finally:
        pool.shutdown(cancel_futures=True)
    return done


def _submitted(
    pool: ProcessPoolExecutor, work: Callable[[T], R], items: Sequence[T], chunk: int
) -> Iterator[R]:
    try:
        return pool.map(work, items, chunksize=chunk)
    except OSError as error:  # of a process that starts while the pool ends because of another's death
        raise BrokenProcessPool(str(error)) from error


class _Begun(SpawnContext):
    """Spawns processes and knows them.

    A pool ends its processes when one of them dies, but not the one that it is starting at that moment, and then waits
    for that one for ever (CPython 3.11).
    """

    def __init__(self) -> None:
        super().__init__()
        self._processes: list[SpawnProcess] = []

    def Process(self, *arguments: Any, **named: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*arguments, **named)
        self._processes.append(process)
        return process

    def kill(self) -> None:
        for process in self._processes:
            if process.pid is not None:  # it has started
                process.kill()


def _check_start(pool: ProcessPoolExecutor) -> None:
    try:
        pool.submit(os.getpid).result()
    except (BrokenProcessPool, OSError) as error:
        raise NoProcess("no worker process can be started: run again with one worker") from error


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes begun in this block never see Ctrl-C, which a terminal sends to all of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
