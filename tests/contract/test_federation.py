"""Guards the federation: the table gets filled, nothing private leaves a device, an interrupted run goes on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.recording import PROTOTYPES, RecordingGrid, Reply
from helpers.runs import FEW_ARMS, copied_run, prepared_run, silent_console, table, tiny_experiment

from fedstill.cloud_server.distillation.arm_names import DEFAULT_ARMS, SCENARIOS
from fedstill.cloud_server.distillation.arms import SHARED
from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.journal.event_log import METRICS_FILE, Metrics, read_events
from fedstill.common.run_layout import JOURNAL_FILE
from fedstill.datasets.audiovisual.capture_card import CARD_BYTES
from fedstill.datasets.audiovisual.store import open_store
from fedstill.evaluation.results import Results
from fedstill.protos.messages import EvaluationResult, Hello, Job, PrototypeUpload
from fedstill.simulation import inprocess
from fedstill.simulation.gather import gather_rows
from fedstill.simulation.inprocess import run_inprocess
from fedstill.simulation.launcher import simulate

pytestmark = pytest.mark.slow

CLIPS_PER_CLASS, CLASSES_PER_CLIENT = 4, 3
REPLIES = {"query.hello": Hello, "query.prototypes": PrototypeUpload, "evaluate.student": EvaluationResult}


@dataclass(frozen=True)
class Finished:
    """A whole run with everything that its devices sent."""

    run_dir: Path
    results: Results
    outbound: list[Reply]


def run_recorded(folder: Path) -> Finished:
    """``simulate`` in this process, with every grid's outbound messages kept."""
    grids: list[RecordingGrid] = []

    class Recording(RecordingGrid):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            grids.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inprocess, "InProcessGrid", Recording)
        results = simulate(tiny_experiment(folder), folder / "run", "inprocess", silent_console())
    return Finished(folder / "run", results, [reply for grid in grids for reply in grid.replies()])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_recorded(tmp_path_factory.mktemp("finished"))


def test_every_cell_of_the_table_is_filled(finished: Finished) -> None:
    results = finished.results
    cells = [(row.scenario, row.arm, row.client, row.seed) for row in results.rows]
    assert sorted(cells) == sorted(itertools.product(SCENARIOS, DEFAULT_ARMS, (0, 1), (0,)))
    clips = CLIPS_PER_CLASS * CLASSES_PER_CLIENT
    assert {row.total for row in results.rows if row.scenario == "latency_insensitive"} == {clips}
    assert {row.total for row in results.rows if row.scenario == "latency_sensitive"} == {clips // 2}
    assert results.failures == ()
    assert {(row.scope, row.client) for row in results.teacher} == {
        ("public_holdout", None), ("client", 0), ("client", 1)
    }  # fmt: skip


def test_every_training_arm_gets_the_same_budget(finished: Finished) -> None:
    sizes = {row.arm: sum(row.class_counts) for row in finished.results.selection}
    assert sizes.keys() == set(DEFAULT_ARMS) - set(SHARED) - {"prior_corrected", "fedstill"}
    assert len(set(sizes.values())) == 1


def test_every_message_costs_bytes(finished: Finished) -> None:
    assert all(row.up_bytes > 0 and row.down_bytes > 0 for row in finished.results.traffic)
    assert {(row.scenario, row.arm, row.client) for row in finished.results.traffic} == {
        (row.scenario, row.arm, row.client) for row in finished.results.rows
    }


def test_the_same_seed_gives_the_same_run(finished: Finished, tmp_path: Path) -> None:
    run_dir = prepared_run(tmp_path)
    run_inprocess(run_dir, 2)
    first, again = gather_rows(finished.run_dir), gather_rows(run_dir)
    for name in ("rows", "teacher", "selection", "losses"):
        assert again[name] == first[name] != (), name
    assert [row.down_bytes for row in again["traffic"]] == [row.down_bytes for row in first["traffic"]]


def test_replies_hold_the_declared_fields_and_nothing_else(finished: Finished) -> None:
    seen = set()
    for reply in finished.outbound:
        seen.add(reply.action)
        kind = REPLIES[reply.action]
        assert set(reply.content) == {"arrays", "fields"}
        if kind is PrototypeUpload:
            assert {name: set(record) for name, record in reply.sent.items()} == {"fields": {"upload"}}
        names = {*reply.content.array_records["arrays"], *reply.content.config_records["fields"]}
        assert names == declared(kind) - {"change"}, "nothing has changed here, so nothing is said of it"
        for name, array in arrays_of(reply).items():
            assert np.issubdtype(array.dtype, np.floating) == (name not in ("counts", "card"))
            assert array.shape[1:] == ((6,) if name == "probabilities" else ())
            assert len(array) <= (CARD_BYTES if name == "card" else CLIPS_PER_CLASS * CLASSES_PER_CLIENT)
    assert seen == REPLIES.keys()


def test_no_label_sound_picture_or_name_leaves_a_device(finished: Finished) -> None:
    owned = [open_store(finished.run_dir / "devices" / str(client) / "data") for client in (0, 1)]
    secret = [bytes(row) for store in owned for clips in (store.audio, store.frames) for row in clips]
    names = {name for store in owned for clip in store.info for name in (clip.clip_id, clip.speaker)}
    assert len(secret) == 48
    assert names
    for reply in finished.outbound:
        for array in arrays_of(reply).values():
            assert not any(row in array.tobytes() for row in secret)
            for store in owned:
                assert not np.array_equal(array.ravel(), store.labels)
                assert not np.array_equal(np.sort(array.ravel()), np.sort(store.labels))
        text = " ".join(map(str, reply.content.config_records["fields"].values()))
        assert not any(name in text for name in names)
        if reply.action == PROTOTYPES:
            packed = bytes(reply.sent.config_records["fields"]["upload"])
            assert not any(row in packed for row in secret)
            assert not any(name.encode() in packed for name in names)


def test_only_the_select_arm_uploads_single_clips(finished: Finished) -> None:
    smallest: dict[str, int] = {}
    for reply in finished.outbound:
        if reply.action == PROTOTYPES:
            arm = json.loads(str(reply.content.config_records["fields"]["job.arm"]))
            counts = int(arrays_of(reply)["counts"].min())
            smallest[arm] = min(counts, smallest.get(arm, counts))
    assert smallest.pop("all_distill_select") == 1
    assert smallest.keys() == {
        "all_distill_select_cluster", "class_prior_sampling", "prior_corrected",
        "class_support", "fedstill",
    }  # fmt: skip
    assert min(smallest.values()) >= 3  # prototypes.min_size of the tiny experiment


# Interrupted and resumed: a few arms over the clips of the finished run, so that it is quick. Nor do devices tell how
# they record, except once: rendering for them takes longer than all the rest.

Tables = Mapping[str, tuple[Any, ...]]


def part_of(finished: Finished) -> Tables:
    """What the finished run says about the few arms, in the first scenario."""
    tables = gather_rows(finished.run_dir)
    return {
        name: tuple(
            row
            for row in rows
            if getattr(row, "arm", "all_distill") in FEW_ARMS
            and getattr(row, "scenario", "latency_insensitive") == "latency_insensitive"
        )
        for name, rows in tables.items()
    }


def few_jobs(finished: Finished, folder: Path, *, card: bool = False) -> Path:
    """The finished run with an event log that is still empty and a plan of few arms."""
    capture = replace(read_plan(finished.run_dir).capture, card=card)
    return copied_run(
        finished.run_dir, folder, METRICS_FILE, f"{JOURNAL_FILE}*", "evaluations", "seed0",
        arms=FEW_ARMS, scenarios=("latency_insensitive",), capture=capture,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The few arms from the first epoch of the teacher on, no card asked for."""
    run_dir = few_jobs(finished, tmp_path_factory.mktemp("undisturbed"))
    run_inprocess(run_dir, 2)
    tables, expected = gather_rows(run_dir), part_of(finished)
    assert tables["teacher"] == expected["teacher"]
    for name in ("rows", "losses"):  # of the arms for which a card makes no difference
        others = [row for row in expected[name] if getattr(row, "arm", "") != "fedstill"]
        assert [row for row in tables[name] if getattr(row, "arm", "") != "fedstill"] == others != []
    return tables


class Unplugged(BaseException):
    """Stops a run the hard way, as Ctrl-C does."""


@pytest.fixture
def unplug(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    """``unplug("job", 3)``: the third job event is the last thing that the run writes."""

    def arm(kind: str, count: int) -> None:
        emit, seen = Metrics.emit, itertools.count(1)

        def failing(self: Metrics, event: str, **values: Any) -> None:
            emit(self, event, **values)
            if event == kind and next(seen) == count:
                raise Unplugged

        monkeypatch.setattr(Metrics, "emit", failing)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("event", "count", "card"),
    [
        ("teacher_epoch", 1, False),
        ("all_distill_epoch", 1, False),
        ("job", 1, False),
        ("job", 4, True),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_table(
    event: str,
    count: int,
    card: bool,
    finished: Finished,
    undisturbed: Tables,
    tmp_path: Path,
    unplug: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = few_jobs(finished, tmp_path, card=card)
    unplug(event, count)
    with pytest.raises(Unplugged):
        run_inprocess(run_dir, 2)
    monkeypatch.undo()
    done = [line for line in read_events(run_dir) if line["event"] == "job"]
    assert (count if event == "job" else 0) <= len(done) < 2 * len(FEW_ARMS)
    with (run_dir / METRICS_FILE).open("a") as event_log:
        event_log.write('{"event": "job", "scen')  # what a kill leaves of a line

    run_inprocess(run_dir, 2)
    jobs = [line for line in read_events(run_dir) if line["event"] == "job"]
    assert jobs[: len(done)] == done
    assert len({(job["arm"], job["client"]) for job in jobs}) == len(jobs) == 2 * len(FEW_ARMS) + 2
    resumed, whole = gather_rows(run_dir), part_of(finished) if card else undisturbed
    for name in ("rows", "selection", "losses", "teacher"):
        assert resumed[name] == whole[name], name


def test_a_finished_run_is_not_done_again(finished: Finished) -> None:
    before = sum(event["event"] == "job" for event in read_events(finished.run_dir))
    again = simulate(
        tiny_experiment(finished.run_dir.parent), finished.run_dir, "inprocess", silent_console()
    )
    assert table(again) == table(finished.results)
    assert sum(event["event"] == "job" for event in read_events(finished.run_dir)) == before


def declared(kind: type, prefix: str = "") -> set[str]:
    """The field names of a message on the wire."""
    names: set[str] = set()
    for field in fields(kind):
        names |= declared(Job, f"{prefix}{field.name}.") if field.name == "job" else {prefix + field.name}
    return names


def arrays_of(reply: Reply) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in reply.content.array_records["arrays"].items()}
