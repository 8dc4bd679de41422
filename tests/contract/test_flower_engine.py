"""A killed launcher leaves its SuperLink on the run; the next launcher ends that one before it starts its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import psutil
import pytest
from helpers.runs import prepared_run, silent_console, tiny_experiment

from fedstill.cloud_server.journal.event_log import EventTail, Metrics
from fedstill.common.child_process import Child
from fedstill.common.errors import RunError
from fedstill.common.folder_lock import FolderInUse, sole_user
from fedstill.simulation import flower_engine
from fedstill.simulation.launcher import simulate

LAUNCHER = """
import sys
from pathlib import Path
from fedstill.simulation.flower_engine import _superlink
with _superlink(Path(sys.argv[1]), Path(sys.argv[2])) as link:
    print(link.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_what_a_killed_launcher_left_is_ended(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), str(homes[0])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert launcher.stdout is not None
    left = psutil.Process(int(launcher.stdout.readline()))
    launcher.kill()
    launcher.communicate()
    assert left.is_running(), "it outlives its launcher"
    with flower_engine._superlink(tmp_path, homes[1]) as link:
        assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
        assert link.pid is not None
        own = psutil.Process(link.pid)
    assert not own.is_running()


def test_a_run_has_one_launcher_at_a_time(tmp_path: Path) -> None:
    run_dir = prepared_run(tmp_path)
    with sole_user(run_dir), pytest.raises(FolderInUse, match="another fedstill process uses it"):
        simulate(tiny_experiment(tmp_path), run_dir, "inprocess", silent_console())


def test_a_run_is_prepared_by_one_launcher_at_a_time(tmp_path: Path) -> None:
    with sole_user(tmp_path / "run"), pytest.raises(FolderInUse, match="another fedstill process uses it"):
        simulate(tiny_experiment(tmp_path), tmp_path / "run", "inprocess", silent_console())
    assert not (tmp_path / "run" / "plan.json").exists()


class _Alive:
    """A SuperLink that runs."""

    def poll(self) -> int | None:
        return None


def test_a_run_that_ends_while_flower_is_asked_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last event is written between a look at the log and Flower's answer that the run is over."""

    def ended(_arguments: list[str], _env: dict[str, str]) -> str:
        metrics = Metrics(tmp_path)
        metrics.emit("finished")
        metrics.close()
        return '{"runs": [{"status": "finished:completed"}]}'

    monkeypatch.setattr(flower_engine, "STATUS_SECONDS", -1.0)
    monkeypatch.setattr(flower_engine, "flwr", ended)
    flower_engine._wait(tmp_path, EventTail(tmp_path), cast("Child", _Alive()), {})


def test_a_run_that_ended_without_a_last_event_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_engine, "STATUS_SECONDS", -1.0)
    monkeypatch.setattr(flower_engine, "flwr", lambda *_: '{"runs": [{"status": "finished:failed"}]}')
    with pytest.raises(RunError, match="finished:failed"):
        flower_engine._wait(tmp_path, EventTail(tmp_path), cast("Child", _Alive()), {})
