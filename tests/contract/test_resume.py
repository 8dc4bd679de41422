"""Guards that an interrupted run continues in its outer round: nothing lost, nothing asked or counted twice."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.recording import PROTOTYPES, RecordingGrid
from helpers.runs import copied_run, trained_run

from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.cloud_server.federation.device_session import DeviceSession
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.cloud_server.federation.server_app import run_plan
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.fleet_state import read_fleet
from fedstill.cloud_server.journal.journal import Journal, open_journal
from fedstill.edge_client.node.client_app import app
from fedstill.simulation.gather import gather_rows

pytestmark = pytest.mark.slow

ARMS = ("all_distill_select", "fedstill")
ROUNDS = 3


class Killed(BaseException):
    """The process ends here."""


def run(run_dir: Path) -> tuple[dict[str, tuple[Any, ...]], Counter[tuple[str, int, int]]]:
    """Start the cloud on ``run_dir``; the tables so far, and what devices were asked: (arm, round, client)."""
    plan, metrics = read_plan(run_dir), Metrics(run_dir)
    grid = RecordingGrid(app, 2, {"run-dir": str(run_dir)})
    try:
        run_plan(plan, Exchange(grid, plan.reply_timeout), metrics)
    finally:
        metrics.close()
    return gather_rows(run_dir), asked(grid)


def asked(grid: RecordingGrid) -> Counter[tuple[str, int, int]]:
    found: Counter[tuple[str, int, int]] = Counter()
    for reply in grid.replies():
        if reply.action == PROTOTYPES:
            said = reply.content.config_records["fields"]
            found[str(said["job.arm"]), int(str(said["job.round"])), reply.node] += 1
    return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its teacher and its first student, and no job done yet."""
    overrides = [f"distillation.outer_epochs={ROUNDS}", f"fedstill.outer_epochs={ROUNDS}"]
    run_dir = trained_run(tmp_path_factory.mktemp("begun"), overrides)
    write_plan(replace(read_plan(run_dir), arms=ARMS, scenarios=("latency_sensitive",)))
    return run_dir


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """The tables of a run that nobody interrupted."""
    tables, questions = run(copied_run(begun, tmp_path_factory.mktemp("whole")))
    assert set(questions.values()) == {1}
    assert len(questions) == 2 * (ROUNDS + 1), "select uploads every round, fedstill once"
    return tables


@pytest.fixture
def ready(begun: Path, tmp_path: Path) -> Path:
    """That run in a folder of its own."""
    return copied_run(begun, tmp_path)


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type, str, int, bool], None]]:
    """``kill(Journal, "accept_upload", 2, after=True)``: the second call is the last thing that happens."""

    def arm(where: type, what: str, count: int, after: bool) -> None:
        real, calls = getattr(where, what), itertools.count(1)

        def failing(*arguments: Any, **options: Any) -> Any:
            last = next(calls) == count
            if last and not after:
                raise Killed
            result = real(*arguments, **options)
            if last:
                raise Killed
            return result

        monkeypatch.setattr(where, what, failing)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("where", "what", "count", "after"),
    [
        (Journal, "accept_upload", 1, True),
        (Journal, "accept_upload", 3, False),
        (Journal, "select", 2, True),
        (Journal, "finish_round", 3, False),
        (Journal, "finish_round", 3, True),
        (Journal, "finish_round", 6, True),
        (Journal, "finish_job", 3, False),
        (Journal, "finish_job", 3, True),
        (DeviceSession, "evaluate", 2, False),
    ],
)
def test_a_killed_cloud_goes_on_where_it_was(
    where: type,
    what: str,
    count: int,
    after: bool,
    whole: dict[str, tuple[Any, ...]],
    ready: Path,
    kill: Callable[[type, str, int, bool], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill(where, what, count, after)
    with pytest.raises(Killed):
        run(ready)
    monkeypatch.undo()
    journal = open_journal(ready)
    accepted = journal.uploaded()
    journal.close()
    tables, questions = run(ready)
    for name in ("rows", "losses", "selection", "teacher", "failures"):
        assert tables[name] == whole[name], name
    assert len(accepted) + sum(questions.values()) == 2 * (ROUNDS + 1), (
        "an accepted upload was asked for again"
    )


def test_every_round_is_in_the_journal(ready: Path) -> None:
    run(ready)
    devices = read_fleet(ready)["devices"]
    assert [row["client"] for row in devices] == [0, 1]
    for row in devices:
        assert row["state"] == "connected"
        assert row["jobs_done"] == len(ARMS) + 1
        assert row["up_bytes"] > 0
        assert row["down_bytes"] > 10_000
        assert 0 <= row["accuracy"] <= 1
    journal = open_journal(ready)
    assert not list(ready.glob("seed0/progress/*")), "training states of finished jobs are cleared away"
    for student in journal.students():
        content = (ready / student["file"]).read_bytes()
        assert len(content) == student["bytes"]
    assert len(journal.students()) == 2
    journal.close()


def test_a_damaged_training_state_is_named(
    ready: Path, kill: Callable[[type, str, int, bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(Journal, "finish_round", 2, True)
    with pytest.raises(Killed):
        run(ready)
    monkeypatch.undo()
    (state,) = list(ready.glob("seed0/progress/*/*.safetensors"))[:1]
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{state.name}.*no usable training state"):
        run(ready)
