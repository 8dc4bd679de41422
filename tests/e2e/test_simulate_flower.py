"""Guards Flower's real runtime: it gives the in-process numbers, can be interrupted, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.quick import quick_environment
from helpers.runs import silent_console, table, tiny_experiment, write_experiment

from fedstill.cloud_server.journal.event_log import read_events
from fedstill.evaluation.results import read_results
from fedstill.simulation.launcher import simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

FEDSTILL = Path(sys.executable).with_name("fedstill")
RUN_SECONDS, STOP_SECONDS = 400.0, 90.0
SETTINGS = (
    'run.arms=["all_distill", "all_distill_select", "fedstill"]',
    'run.scenarios=["latency_sensitive"]',
    "run.reply_timeout=400",
)
"""An arm that asks a device to evaluate only, one that asks every round, one that installs; in the scenario in which a
device asks about some of its clips and tests on others; and other tests want the processor, too."""
SIMULATE = ["simulate", *(part for setting in SETTINGS for part in ("--set", setting))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """The table of the same experiment without Flower's processes."""
    folder = tmp_path_factory.mktemp("inprocess")
    return table(simulate(tiny_experiment(folder, SETTINGS), folder / "run", "inprocess", silent_console()))


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short name (Ray keeps sockets there); every temporary file of a run goes below it, too."""
    folder = Path(tempfile.mkdtemp(prefix="fs", dir="/tmp"))
    (folder / "t").mkdir()
    yield folder
    for process in running(folder):
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Launched:
    """``fedstill`` in a session of its own, and every process that was ever seen below it."""

    home: Path
    arguments: list[str]
    family: set[psutil.Process] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [str(FEDSTILL), *self.arguments],
            cwd=self.home,
            env=quick_environment() | {"TMPDIR": str(self.home / "t")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_until(self, reached: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, f"{self.arguments}: not reached within {seconds:.0f} s"
            try:
                self.family.update(psutil.Process(self.process.pid).children(recursive=True))
            except psutil.NoSuchProcess:
                return
            time.sleep(0.2)

    def finish(self, seconds: float) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self.wait_until(lambda: self.process.poll() is not None, seconds)
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, out, err

    def left(self) -> list[str]:
        """What still runs, a moment after the launcher ended."""
        _, alive = psutil.wait_procs(list(self.family), timeout=3)
        return sorted({describe(process) for process in [*alive, *running(self.home)]})


def running(home: Path) -> list[psutil.Process]:
    """Processes that work in or for this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.environ().get("TMPDIR", "")]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(home) in word for word in words):
            found.append(process)
    return found


def describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:120]}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone)"


def jobs(run_dir: Path) -> int:
    return sum(event["event"] == "job" for event in read_events(run_dir))


@dataclass(frozen=True)
class Flown:
    """``fedstill`` on Flower's runtime, ended."""

    code: int
    out: str
    err: str
    processes_seen: int
    processes_left: list[str]
    files_left: list[str]
    results: bool
    jobs: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One run, in the middle of which somebody pressed Ctrl-C, and which was then resumed."""

    folder: Path
    interrupted: Flown
    resumed: Flown


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with short_folder() as home:
        run_dir = home / "run"
        first = Launched(home, [*SIMULATE, str(write_experiment(home)), "--out", str(run_dir)])
        first.wait_until(lambda: jobs(run_dir) >= 2, RUN_SECONDS)
        os.killpg(first.process.pid, signal.SIGINT)
        interrupted = flown(first, run_dir, STOP_SECONDS)
        second = Launched(home, ["simulate", "--resume", str(run_dir)])
        yield Run(run_dir, interrupted, flown(second, run_dir, RUN_SECONDS))


def flown(launched: Launched, run_dir: Path, seconds: float) -> Flown:
    """Wait for its end."""
    code, out, err = launched.finish(seconds)
    left = launched.left()
    files = [path.name for path in (launched.home / "t").iterdir()]
    done = [event for event in read_events(run_dir) if event["event"] == "job"]
    results = (run_dir / "results.json").exists()
    return Flown(code, out, err, len(launched.family), left, files, results, done)


def test_ctrl_c_ends_a_run_and_says_how_to_resume_it(run: Run, expected: list[tuple[object, ...]]) -> None:
    stopped = run.interrupted
    assert stopped.code == 130
    assert len(stopped.err.strip().splitlines()) == 1, stopped.err
    assert f"--resume {run.folder}" in stopped.err
    assert "Traceback" not in stopped.out
    assert not stopped.results
    assert 2 <= len(stopped.jobs) < len(expected)


def test_the_real_runtime_gives_the_same_table(run: Run, expected: list[tuple[object, ...]]) -> None:
    """Some jobs were done before the interruption, the rest after it, and none twice."""
    done = run.resumed
    assert done.code == 0, done.err[-2000:]
    assert "Traceback" not in done.out + done.err
    results = read_results(run.folder)
    assert table(results) == expected
    assert results.failures == ()
    assert done.jobs[: len(run.interrupted.jobs)] == run.interrupted.jobs
    assert str(run.folder / "report.html") in done.out + done.err
    assert (run.folder / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("which", ["interrupted", "resumed"])
def test_nothing_stays_behind(which: str, run: Run) -> None:
    ended = getattr(run, which)
    assert ended.processes_seen > 3, "Flower's processes were never seen, so their end proves nothing"
    assert ended.processes_left == []
    assert ended.files_left == []
