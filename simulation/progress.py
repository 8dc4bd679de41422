"""Live progress of a run, from its event log, and the peak memory of its processes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedstill.cloud_server.journal.event_log import EventTail

Event = Mapping[str, Any]
REFRESH_SECONDS = 1.0
MEMORY_EVERY = 5
"""Refreshes between two looks at the memory: the kernel walks every page for it, which costs the run time."""


class LiveProgress:
    """Shows progress during a run; use as a context manager. ``peak_memory_mb`` is the process tree's PSS."""

    def __init__(self, run_dir: Path, console: Console) -> None:
        self._events = EventTail(run_dir)
        self._stop = threading.Event()
        self._bars = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.peak_memory_mb = 0.0

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._draw_new()
        self._bars.stop()

    def _follow(self) -> None:
        for refresh in itertools.count():
            if self._stop.wait(REFRESH_SECONDS):
                return
            self._draw_new()
            if refresh % MEMORY_EVERY == 0:
                self.peak_memory_mb = max(self.peak_memory_mb, tree_memory_mb())

    def _draw_new(self) -> None:
        for event in self._events.new():
            self._draw(event)

    def _draw(self, event: Event) -> None:
        kind, seed = event["event"], event.get("seed")
        note = f"loss {event['loss']:.3f}" if "loss" in event else ""
        if kind == "teacher_epoch":
            self._advance(f"seed {seed}: teacher epochs", event["epochs"], note)
        elif kind == "teacher":
            share = event["correct"] / event["total"]
            self._note(f"seed {seed}: teacher epochs", f"{share:.1%} held out")
        elif kind == "all_distill_epoch":
            self._advance(f"seed {seed}: AllDistill epochs", event["epochs"], note)
        elif kind == "equal_steps_epoch":
            self._advance(f"seed {seed}: {event['arm']}", event["epochs"], note)
        elif kind == "cross_fit":
            self._advance(f"seed {seed}: cross-fit folds", event["folds"], "")
        elif kind == "seed":
            self._task(f"seed {seed}: device jobs", event["jobs"])
        elif kind == "job":
            self._advance(f"seed {seed}: device jobs", 0, f"{event['arm']}, client {event['client']}")
        elif kind in ("failure", "refused"):
            who = (
                f"client {event['client']}, {event['arm']}" if kind == "failure" else f"node {event['node']}"
            )
            self._bars.console.print(
                f"[yellow]left out:[/] {who}: {escape(event['reason'])}", highlight=False
            )

    def _task(self, name: str, total: int) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total or None, note="")
        elif total:
            self._bars.update(self._tasks[name], total=total)
        return self._tasks[name]

    def _advance(self, name: str, total: int, note: str) -> None:
        self._bars.update(self._task(name, total), advance=1, note=note)

    def _note(self, name: str, note: str) -> None:
        if name in self._tasks:
            self._bars.update(self._tasks[name], note=note)


def tree_memory_mb() -> float:
    """Proportional set size of this process and all its descendants, in MB; shared pages count once."""
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 1e6
