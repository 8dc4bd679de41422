"""One long-lived child process: started, watched, and ended with all its descendants, also after a crash of its parent.

The parent leaves the child's pid and start time in a file. A parent killed with -9 leaves an orphan on the same folder.
The next parent finds it through that file and ends it before it starts its own child. Both services and the simulation
do so.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from fedstill.common.atomic_files import replace_text

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
START_TICKS = 19
"""Where ``/proc/PID/stat`` has it, counted behind the command."""
CLOCK_TICK = 0.01
"""Seconds: the kernel's time of a process's start is a whole number of them."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MOST_LOG_BYTES = 10_000_000
"""Then a child's log is put aside, with ``.1`` at its end: both together never take more than about twice as much."""


class Child:
    """A process in a session of its own, its output in ``folder/NAME.log``."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log_file = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"
        self._folder = str(folder.absolute())
        self._process: subprocess.Popen[bytes] | None = None
        self._family: set[psutil.Process] = set()

    @property
    def pid(self) -> int | None:
        """Of the process that was started last."""
        return None if self._process is None else self._process.pid

    def start(self, command: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        """End a process that an earlier parent may have left, then start."""
        self._end_orphan()
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        started = psutil.Process(self._process.pid)
        self._family = {started}
        left = {
            "pid": started.pid,
            "started": started.create_time(),
            "since_boot": _since_boot(started),
            "boot": _boot(),
            "folder": self._folder,
        }
        replace_text(self._pid_file, json.dumps(left))
        log.info("event=started child=%s pid=%d", self.name, started.pid)

    def poll(self) -> int | None:
        """None while it runs (or before it was started), then its exit status."""
        if self._process is None:
            return None
        status = self._process.poll()
        self._limit_log()
        if status is None:  # recorded, so that none of them outlives a killed main process
            self._family = {
                process
                for process in {*self._family, *family(psutil.Process(self._process.pid))}
                if process.is_running()
            }
        return status

    def stop(self) -> None:
        """End it and everything below it: SIGTERM, and after ``STOP_SECONDS`` SIGKILL.

        Before the first start, end a process that an earlier parent may have left.
        """
        if self._process is None:
            self._end_orphan()
            return
        self.poll()
        end(self._family)
        status = self._process.wait(STOP_SECONDS)
        log.info("event=stopped child=%s pid=%d status=%d", self.name, self._process.pid, status)
        self._process = None
        self._family = set()
        self._pid_file.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """The last line of its log, for an error message."""
        try:
            with self.log_file.open("rb") as output:
                output.seek(max(0, output.seek(0, os.SEEK_END) - 4096))
                lines = output.read().decode("utf-8", "replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        return lines[-1].strip() if lines else "no output"

    def _limit_log(self) -> None:
        """The child goes on writing to the same file, which appends. Lines of the moment between may be lost."""
        try:
            if self.log_file.stat().st_size > MOST_LOG_BYTES:
                shutil.copyfile(self.log_file, self.log_file.with_name(f"{self.log_file.name}.1"))
                os.truncate(self.log_file, 0)
        except FileNotFoundError:
            return
        except OSError as error:  # a full disk: the log stays as it is, and the child runs on
            log.warning("event=log_not_rotated child=%s reason=%s", self.name, error.strerror or error)

    def _end_orphan(self) -> None:
        try:
            left = json.loads(self._pid_file.read_bytes())
            orphan = psutil.Process(left["pid"])
            if not _is_same(orphan, left) or left.get("folder", self._folder) != self._folder:
                return  # another process has its number, or this folder is a copy of a living one's
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, psutil.NoSuchProcess):
            return  # never written, damaged, or long gone
        log.warning("event=orphan child=%s pid=%d action=end", self.name, orphan.pid)
        end(family(orphan))


def _is_same(process: psutil.Process, left: Mapping[str, Any]) -> bool:
    """Whether this process is the one of which a file tells, also if the clock was set since then."""
    if "since_boot" not in left:  # written by an older version
        return bool(process.create_time() == left["started"])
    return bool(left["boot"] == _boot() and abs(_since_boot(process) - left["since_boot"]) < CLOCK_TICK / 2)


def _since_boot(process: psutil.Process) -> float:
    """When it was started, in seconds since the machine was; the kernel's own number has no clock in it."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # no Linux, or it has just ended, which psutil says in its way
        return float(process.create_time() - psutil.boot_time())
    return int(fields[START_TICKS]) / os.sysconf("SC_CLK_TCK")


def _boot() -> str:
    """Another one after each start of the machine, if it says that."""
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def family(head: psutil.Process) -> list[psutil.Process]:
    """A process and everything below it, youngest first; empty if it is gone."""
    try:
        return [*head.children(recursive=True), head]
    except psutil.NoSuchProcess:
        return []


def end(processes: Iterable[psutil.Process]) -> None:
    """End these processes, each by its pid: first SIGTERM, then SIGKILL."""
    ending = list(processes)
    for process in ending:
        _signal(process, "terminate")
    _, alive = psutil.wait_procs(ending, timeout=STOP_SECONDS)
    for process in alive:
        _signal(process, "kill")


def _signal(process: psutil.Process, how: str) -> None:
    try:
        getattr(process, how)()  # psutil checks the start time: a reused pid is not touched
    except psutil.NoSuchProcess:
        return
