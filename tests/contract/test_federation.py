"""Guards the federation: the table gets filled, nothing private leaves a device, one bad device does not stop the
others."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from helpers.recording import PROTOTYPES, RecordingGrid, Reply
from helpers.runs import copied_run, prepared_run, silent_console, table, tiny_experiment

from fedstill.cloud_server.distillation.arm_names import DEFAULT_ARMS, SCENARIOS
from fedstill.cloud_server.distillation.arms import SHARED
from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.cloud_server.federation.event_log import METRICS_FILE, Metrics, read_events
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.cloud_server.federation.journal import JOURNAL_FILE
from fedstill.cloud_server.federation.server_app import run_plan
from fedstill.datasets.audiovisual.capture_card import CARD_BYTES
from fedstill.datasets.audiovisual.store import open_store
from fedstill.edge_client.node.client_app import app as real_app
from fedstill.evaluation.results import Results
from fedstill.protos.messages import EvaluationResult, Hello, Job, PrototypeUpload
from fedstill.protos.packed_upload import pack_upload
from fedstill.protos.records import plain_records
from fedstill.simulation import inprocess
from fedstill.simulation.gather import gather_rows
from fedstill.simulation.inprocess import InProcessGrid, run_inprocess
from fedstill.simulation.launcher import simulate

pytestmark = pytest.mark.slow

CLIPS_PER_CLASS, CLASSES_PER_CLIENT = 4, 3
REPLIES = {"query.hello": Hello, "query.prototypes": PrototypeUpload, "evaluate.student": EvaluationResult}
FEW_ARMS = ("all_distill", "all_distill_select", "fedstill")
BAD = 1
"""The client whose device misbehaves; the other one must not be affected."""


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
        assert names == declared(kind)
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


# One device misbehaves, or the run is interrupted: a few arms over the models of the finished run, so that it is quick.
# Nor do devices tell how they record, except once: rendering for them takes longer than all the rest.

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


def few_jobs(finished: Finished, folder: Path, *leave_out: str, card: bool = False) -> Path:
    """The finished run with an event log that is still empty, a plan of few arms and little patience."""
    capture = replace(read_plan(finished.run_dir).capture, card=card)
    return copied_run(
        finished.run_dir, folder, METRICS_FILE, f"{JOURNAL_FILE}*", "evaluations", *leave_out,
        arms=FEW_ARMS, scenarios=("latency_insensitive",), capture=capture, reply_timeout=0.6, join_timeout=1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The few arms from the first epoch of the teacher on, nobody misbehaving, no card asked for."""
    run_dir = few_jobs(finished, tmp_path_factory.mktemp("undisturbed"), "seed0")
    run_inprocess(run_dir, 2)
    tables, expected = gather_rows(run_dir), part_of(finished)
    assert tables["teacher"] == expected["teacher"]
    for name in ("rows", "losses"):  # of the arms for which a card makes no difference
        others = [row for row in expected[name] if getattr(row, "arm", "") != "fedstill"]
        assert [row for row in tables[name] if getattr(row, "arm", "") != "fedstill"] == others != []
    return tables


@pytest.fixture
def jobs_left(finished: Finished, tmp_path: Path) -> Path:
    """A run whose models are trained and whose jobs have all yet to be done."""
    return few_jobs(finished, tmp_path)


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


# Interrupted and resumed.


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
    run_dir = few_jobs(finished, tmp_path, "seed0", card=card)
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
