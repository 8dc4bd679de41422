"""The memory of a process and everything below it: proportional shares (PSS), sampled by a thread."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.1


def proportional(pid: int) -> int:
    """Bytes of a process, what it shares with others divided among them; 0 once it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class MemoryWatch:
    """Samples while the block runs; a context manager.

    Attributes:
        found: bytes of each sample since ``forget``.
    """

    def __init__(self, head: int) -> None:
        self.found: list[int] = []
        self._head = head
        self._last: dict[str, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def most(self) -> int:
        return max(self.found, default=0)

    def forget(self) -> None:
        """Start afresh."""
        self.found = []

    def of_each(self) -> list[tuple[str, int]]:
        """The command and the bytes of each process at the last sample."""
        return sorted(self._last.items(), key=lambda one: -one[1])

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            with suppress(psutil.Error):
                head = psutil.Process(self._head)
                sizes: dict[str, int] = {}
                for process in [head, *head.children(recursive=True)]:
                    with suppress(psutil.Error):
                        name = " ".join(Path(part).name for part in process.cmdline()[:5])
                        sizes[name] = sizes.get(name, 0) + proportional(process.pid)
                self.found.append(sum(sizes.values()))
                self._last = sizes
