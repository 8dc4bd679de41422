"""Guards the federation against one device that misbehaves: its own work is left out, the others' stays what it was.

A few arms over the models of an undisturbed run, and no device tells how it records, so that each case is quick;
``test_promise.py`` has the questions that only a device with a card is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from helpers.runs import FEW_ARMS, copied_run, prepared_run

from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.cloud_server.federation.server_app import run_plan
from fedstill.cloud_server.journal.event_log import METRICS_FILE, Metrics, read_events
from fedstill.common.run_layout import JOURNAL_FILE
from fedstill.edge_client.node.client_app import app as real_app
from fedstill.protos.messages import Job, PrototypeUpload
from fedstill.protos.packed_upload import pack_upload
from fedstill.protos.records import plain_records
from fedstill.simulation.gather import gather_rows
from fedstill.simulation.inprocess import InProcessGrid, run_inprocess

pytestmark = pytest.mark.slow

BAD = 1
"""The client whose device misbehaves; the other one must not be affected."""
PLAN = (f"run.arms={json.dumps(FEW_ARMS)}", "run.scenarios=['latency_insensitive']", "capture.card=false")

Tables = Mapping[str, tuple[Any, ...]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which nobody misbehaves."""
    run_dir = prepared_run(tmp_path_factory.mktemp("finished"), PLAN)
    run_inprocess(run_dir, 2)
    return run_dir


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> Tables:
    return gather_rows(finished)


@pytest.fixture
def jobs_left(finished: Path, tmp_path: Path) -> Path:
    """A run whose models are trained and whose jobs have all yet to be done, with little patience."""
    return copied_run(
        finished,
        tmp_path,
        METRICS_FILE,
        f"{JOURNAL_FILE}*",
        "evaluations",
        reply_timeout=0.6,
        join_timeout=1.0,
    )


class OneBadDevice(ClientApp):
    """The real ClientApp, except for one device, which says hello and then answers in its own way."""

    def __init__(self, answer: Callable[[Message, Context], Message], actions: Iterable[str]) -> None:
        super().__init__()
        self.answer, self.actions = answer, tuple(actions)

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == BAD and message.metadata.message_type in self.actions:
            return self.answer(message, context)
        return real_app(message, context)


class FadingGrid(InProcessGrid):
    """Everybody says hello; then the bad device is ``dead`` or ``silent``."""

    def __init__(self, run_dir: Path, how: str) -> None:
        super().__init__(real_app, 2, {"run-dir": str(run_dir)})
        self.how = how

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            if message.metadata.message_type != "query.hello":
                getattr(self, f"_{self.how}").add(BAD)
            yield from super().push_messages([message])


def run_with(run_dir: Path, grid: InProcessGrid) -> Tables:
    """The plan over this grid; the tables that it leaves."""
    plan, metrics = read_plan(run_dir), Metrics(run_dir)
    try:
        run_plan(plan, Exchange(grid, plan.reply_timeout), metrics)
    finally:
        metrics.close()
    return gather_rows(run_dir)


def rows_of(tables: Tables, client: int) -> dict[str, int]:
    return {row.arm: row.correct for row in tables["rows"] if row.client == client}


def others_are_fine(tables: Tables, expected: Tables) -> bool:
    """The good device's rows and losses are those of a run without a fault."""
    return rows_of(tables, 1 - BAD) == rows_of(expected, 1 - BAD) != {} and [
        row for row in tables["losses"] if row.client != BAD
    ] == [row for row in expected["losses"] if row.client != BAD]


def raises(_message: Message, _context: Context) -> Message:
    raise RuntimeError("camera unplugged [/dev/video0]")


def test_a_device_that_raises(jobs_left: Path, undisturbed: Tables) -> None:
    app = OneBadDevice(raises, ("query.prototypes", "evaluate.student"))
    tables = run_with(jobs_left, InProcessGrid(app, 2, {"run-dir": str(jobs_left)}))
    assert others_are_fine(tables, undisturbed)
    assert rows_of(tables, BAD) == {}
    failed = {(row.arm, row.round) for row in tables["failures"] if row.client == BAD}
    assert failed == {(arm, 1) for arm in FEW_ARMS} | {("all_distill_select", 0), ("fedstill", 0)}
    assert {row.reason for row in tables["failures"]} == {"camera unplugged [/dev/video0]"}


@pytest.mark.parametrize(("how", "reason"), [("dead", "Node Unavailable"), ("silent", "no reply within")])
def test_a_device_that_vanishes_after_hello(
    how: str, reason: str, jobs_left: Path, undisturbed: Tables
) -> None:
    tables = run_with(jobs_left, FadingGrid(jobs_left, how))
    assert others_are_fine(tables, undisturbed)
    assert rows_of(tables, BAD) == {}
    assert {row.client for row in tables["failures"]} == {BAD}
    assert {row.arm for row in tables["failures"]} == set(FEW_ARMS)
    assert all(reason in row.reason and "\n" not in row.reason for row in tables["failures"])


@pytest.mark.parametrize("how", ["dead", "silent"])
def test_a_device_that_was_never_there(how: str, jobs_left: Path, undisturbed: Tables) -> None:
    options = {how: [BAD]}
    tables = run_with(jobs_left, InProcessGrid(real_app, 2, {"run-dir": str(jobs_left)}, **options))
    assert others_are_fine(tables, undisturbed)
    assert BAD in {row.client for row in tables["failures"]}, "results.json does not say who was left out"


def test_nobody_is_there(jobs_left: Path) -> None:
    with pytest.raises(RuntimeError, match="no device"):
        run_with(jobs_left, InProcessGrid(real_app, 2, {"run-dir": str(jobs_left)}, dead=[0, 1]))


def upload(probabilities: np.ndarray, counts: np.ndarray | None = None) -> RecordDict:
    """A prototype upload as plain records, unchecked: whatever a broken or hostile device may send."""
    names = ("neutral", "happy", "sad", "fear", "disgust", "angry")
    rows = len(probabilities)
    job = Job("latency_insensitive", "fedstill", 0, 0)
    content = plain_records(
        PrototypeUpload(job, np.full((1, 6), 1 / 6, np.float32), np.ones(1, np.int64), names)
    )
    content.array_records["arrays"]["probabilities"] = Array(probabilities)
    content.array_records["arrays"]["counts"] = Array(np.ones(rows, np.int64) if counts is None else counts)
    return content


def uniform(rows: int) -> np.ndarray:
    return np.full((rows, 6), 1 / 6, np.float32)


def with_labels() -> RecordDict:
    content = upload(uniform(2))
    content.array_records["arrays"]["labels"] = Array(np.array([3, 4], np.int64))
    return content


def with_text(field: str, text: str) -> RecordDict:
    content = upload(uniform(2))
    content.config_records["fields"][field] = text
    return content


def with_array(field: str, array: np.ndarray) -> RecordDict:
    content = upload(uniform(2))
    del content.config_records["fields"][field]
    content.array_records["arrays"][field] = Array(array)
    return content


def with_text_for_arrays() -> RecordDict:
    return RecordDict({"arrays": ConfigRecord({"a": "b"}), "fields": ConfigRecord({"a": "b"})})


def packed(arm: str, more: bytes = b"") -> RecordDict:
    """A packed upload of two rows, with more bytes behind it."""
    names = ("neutral", "happy", "sad", "fear", "disgust", "angry")
    job = Job("latency_insensitive", arm, 0, 0)
    data = pack_upload(PrototypeUpload(job, uniform(2), np.ones(2, np.int64), names))
    return RecordDict({"fields": ConfigRecord({"upload": data + more})})


NONSENSE = {
    "labels": with_labels,
    "NaN": lambda: upload(np.full((2, 6), np.nan, np.float32)),
    "doubles": lambda: upload(uniform(2).astype(np.float64)),
    "sum": lambda: upload(2 * uniform(2)),
    "counts": lambda: upload(uniform(2), np.array([1, -5])),
    "no rows": lambda: upload(uniform(0)),
    "more rows than the budget": lambda: upload(uniform(500)),
    "counts beyond int64": lambda: upload(uniform(2), np.array([2**62, 2**62])),
    "other classes": lambda: with_text("class_names", '["a", "b", "c", "d", "e", "f"]'),
    "no JSON": lambda: with_text("job.seed", "{"),
    "deep JSON": lambda: with_text("class_names", "[" * 100_000),
    "endless number": lambda: with_text("job.seed", "9" * 5_000),
    "an array for a name": lambda: with_array("job.scenario", np.arange(3.0)),
    "an array for a number": lambda: with_array("job.round", np.arange(3)),
    "no records": RecordDict,
    "other records": with_text_for_arrays,
    "packed for another job": lambda: packed("oracle_classes"),
    "packed with more": lambda: packed("fedstill", b"labels"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_device_that_uploads_nonsense(kind: str, jobs_left: Path, undisturbed: Tables) -> None:
    """Its outer epoch is left out, so its students stay what AllDistill made of them; the rest goes on."""

    def answer(message: Message, _context: Context) -> Message:
        return Message(NONSENSE[kind](), reply_to=message)

    app = OneBadDevice(answer, ("query.prototypes",))
    tables = run_with(jobs_left, InProcessGrid(app, 2, {"run-dir": str(jobs_left)}))
    assert others_are_fine(tables, undisturbed)
    reasons = {row.arm: row.reason for row in tables["failures"]}
    assert "all_distill_select" in reasons
    assert all("\n" not in reason for reason in reasons.values())
    left = rows_of(tables, BAD)
    assert left.keys() == set(FEW_ARMS)
    assert left["all_distill_select"] == left["all_distill"]
    if kind == "labels":
        assert "labels" in reasons["fedstill"]


NONSENSE_RESULTS = {
    "13 of 12": {"correct": "13"},
    "nobody tested": {"correct": "0", "total": "0"},
    "true": {"correct": "true"},
    "half a clip": {"correct": "0.5"},
    "another job": {"job.arm": '"oracle_classes"'},
    "NaN seconds": {"seconds": "NaN"},
    "predictions": {"predictions": "[0, 1, 2]"},
}


@pytest.mark.parametrize("kind", NONSENSE_RESULTS)
def test_a_device_that_reports_a_nonsense_result(kind: str, jobs_left: Path, undisturbed: Tables) -> None:
    def answer(message: Message, context: Context) -> Message:
        reply = real_app(message, context)
        for field, text in NONSENSE_RESULTS[kind].items():
            reply.content.config_records["fields"][field] = text
        return reply

    app = OneBadDevice(answer, ("evaluate.student",))
    tables = run_with(jobs_left, InProcessGrid(app, 2, {"run-dir": str(jobs_left)}))
    assert others_are_fine(tables, undisturbed)
    assert rows_of(tables, BAD) == {}
    assert {(row.client, row.arm) for row in tables["failures"]} == {(BAD, arm) for arm in FEW_ARMS}


@pytest.mark.parametrize("partition", ["5", "-1"])
def test_a_device_that_claims_a_strange_place(partition: str, jobs_left: Path, undisturbed: Tables) -> None:
    """Not one of the plan's: refused, and nobody else loses theirs."""

    def answer(message: Message, context: Context) -> Message:
        reply = real_app(message, context)
        reply.content.config_records["fields"]["partition"] = partition
        return reply

    app = OneBadDevice(answer, ("query.hello",))
    tables = run_with(jobs_left, InProcessGrid(app, 2, {"run-dir": str(jobs_left)}))
    assert [event for event in read_events(jobs_left) if event["event"] == "refused"]
    assert others_are_fine(tables, undisturbed)


class NamedGrid(InProcessGrid):
    """Nodes with registered names, as where they are authenticated."""

    def get_nodes(self) -> list[SimpleNamespace]:
        nodes = sorted(self.get_node_ids())
        return [SimpleNamespace(node_id=node, name=NAMES[index]) for index, node in enumerate(nodes)]


NAMES = ("kitchen", "hall")


def test_a_device_that_claims_the_place_of_another_device(jobs_left: Path, undisturbed: Tables) -> None:
    """If nodes are authenticated, a client number belongs to a name and a name to a key, whichever node comes first."""

    def answer(message: Message, context: Context) -> Message:
        reply = real_app(message, context)
        reply.content.config_records["fields"]["partition"] = "0"
        return reply

    write_plan(replace(read_plan(jobs_left), devices=NAMES))
    app = OneBadDevice(answer, ("query.hello",))
    tables = run_with(jobs_left, NamedGrid(app, 2, {"run-dir": str(jobs_left)}))
    (refused,) = [event for event in read_events(jobs_left) if event["event"] == "refused"]
    assert "its certificate does not cover" in refused["reason"]
    assert others_are_fine(tables, undisturbed)
