"""Guards the downlink: updates reach the model store, a wiped device gets its student whole once, installs are
tried."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from helpers.runs import copied_run, prepared_run

from fedstill.cloud_server.distillation.run_plan import RunPlan, read_plan, write_plan
from fedstill.cloud_server.distillation.settings import DownlinkSettings
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.cloud_server.federation.server_app import run_plan
from fedstill.cloud_server.journal.event_log import Metrics, read_events
from fedstill.common.run_layout import JOURNAL_FILE
from fedstill.edge_client.folder import KNOWN_CLIPS_FILE
from fedstill.edge_client.node.client_app import app as real_app
from fedstill.edge_client.students.pointer import POINTER
from fedstill.edge_client.students.students import ModelStore
from fedstill.models.weights.checkpoint import load_checkpoint
from fedstill.models.weights.packing import arrays
from fedstill.protos.messages import (
    EvaluationRequest,
    InstallRequest,
    MissingDependency,
    PrototypeRequest,
    Student,
)
from fedstill.protos.records import decode, encode
from fedstill.simulation.inprocess import InProcessGrid

pytestmark = pytest.mark.slow

Event = dict[str, Any]
REQUESTS = {
    "query.prototypes": PrototypeRequest,
    "evaluate.student": EvaluationRequest,
    "train.install": InstallRequest,
}


class Listening(ClientApp):
    """The real ClientApp; every student sent down is recorded, and ``before`` may interfere with the device."""

    def __init__(self, before: Callable[[str, Path], Message | None] | None = None) -> None:
        super().__init__()
        self.before = before
        self.students: list[tuple[str, int, Student]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        action, device = message.metadata.message_type, int(context.node_config["partition-id"])
        if action in REQUESTS:
            self.students.append((action, device, decode(REQUESTS[action], message.content).student))
            folder = Path(str(context.run_config["run-dir"])) / "devices" / str(device)
            content = self.before(action, folder) if self.before else None
            if content is not None:
                return Message(content, reply_to=message)
        return real_app(message, context)

    def sent(self, device: int) -> list[tuple[str, Student]]:
        return [(action, student) for action, to, student in self.students if to == device]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose teacher, bank and AllDistill student are there, and nothing else."""
    run_dir = prepared_run(
        tmp_path_factory.mktemp("trained"),
        [
            "run.arms=['all_distill', 'fedstill']",
            "run.scenarios=['latency_insensitive']",
            "dataset.public_per_class=8",
        ],
    )
    run(run_dir, Listening())
    for left in ("metrics.jsonl", JOURNAL_FILE, *(f"devices/{device}/students" for device in (0, 1))):
        path = run_dir / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(run_dir / "seed0" / "students")
    return run_dir


def run(run_dir: Path, app: ClientApp) -> list[Event]:
    """The plan with this app on the devices; the events of the run."""
    plan, metrics = read_plan(run_dir), Metrics(run_dir)
    try:
        run_plan(plan, Exchange(InProcessGrid(app, plan.clients, {"run-dir": str(run_dir)}), 60.0), metrics)
    finally:
        metrics.close()
    return list(read_events(run_dir))


@dataclass(frozen=True)
class Done:
    """A run that nobody disturbed, and what was sent in it."""

    run_dir: Path
    app: Listening
    events: list[Event]


@pytest.fixture(scope="module")
def done(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """``done(arms=("fedstill",))``: a run with this plan, made once for all tests."""
    made: dict[str, Done] = {}

    def run_once(**changes: Any) -> Done:
        if repr(changes) not in made:
            run_dir, app = copied_run(trained, tmp_path_factory.mktemp("done"), **changes), Listening()
            made[repr(changes)] = Done(run_dir, app, run(run_dir, app))
        return made[repr(changes)]

    return run_once


def jobs(events: list[Event], arm: str = "fedstill") -> dict[int, Event]:
    """By client."""
    return {event["client"]: event for event in events if event["event"] == "job" and event["arm"] == arm}


def results(events: list[Event]) -> Mapping[tuple[str, int], tuple[int, int]]:
    return {
        (event["arm"], event["client"]): (
            event["evaluations"][0]["correct"],
            event["evaluations"][0]["total"],
        )
        for event in events
        if event["event"] == "job"
    }


def failures(events: list[Event]) -> list[str]:
    return [event["reason"] for event in events if event["event"] == "failure"]


def test_the_second_student_travels_as_an_update_of_the_first(done: Callable[..., Done]) -> None:
    one = done(arms=("fedstill",))
    run_dir = one.run_dir
    assert failures(one.events) == []
    _, (asked, first), (counted, second) = one.app.sent(0)  # the teacher comes before them
    assert (asked, first.base) == ("query.prototypes", "")
    assert (counted, second.base) == ("evaluate.student", first.version)
    held = ModelStore(run_dir / "devices" / "0" / "students").load(second.version)
    kept, _ = load_checkpoint(run_dir / "seed0" / "students" / "latency_insensitive-client0")
    assert all(np.array_equal(held.state[name], value) for name, value in arrays(kept).items())


def test_traffic_counts_what_travelled(done: Callable[..., Done]) -> None:
    one = done(arms=("fedstill",))
    rows = jobs(one.events)[0]["traffic"]
    students = [student for _, student in one.app.sent(0)[1:]]
    for row, student in zip(rows, students, strict=True):
        assert 0 < row["down_bytes"] - len(student.weights) < 2000


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rounded_students_are_smaller_and_the_same_ones_every_time(
    precision: str, trained: Path, done: Callable[..., Done], tmp_path: Path
) -> None:
    settings = DownlinkSettings(precision=precision)
    exact, one = done(downlink=DownlinkSettings()).events, done(downlink=settings).events
    other = run(copied_run(trained, tmp_path, downlink=settings), Listening())
    assert failures(one) == []
    assert results(one) == results(other)
    assert results(one)["teacher", 0] == results(exact)["teacher", 0]
    for client in (0, 1):
        down = [
            sum(row["down_bytes"] for row in jobs(events)[client]["traffic"])
            for events in (one, other, exact)
        ]
        assert down[0] == down[1] < down[2]


def test_a_student_that_did_not_change_travels_as_next_to_nothing(trained: Path, tmp_path: Path) -> None:
    settings = DownlinkSettings(precision="int8", install="all_distill", minimum_agreement=0.0)
    run_dir, app = copied_run(trained, tmp_path, arms=("all_distill",), downlink=settings), Listening()
    assert failures(run(run_dir, app)) == []
    (_, whole), *others = app.sent(0)[1:]
    assert [action for action, _ in app.sent(0)[1:]] == ["evaluate.student", "train.install", "train.install"]
    assert {(student.version, student.base) for _, student in others} == {(whole.version, whole.version)}
    assert all(len(student.weights) < 100 < len(whole.weights) for _, student in others)


@pytest.mark.parametrize("precision", ["exact", "int8"])
def test_a_wiped_device_gets_the_same_student_whole_once(
    precision: str, trained: Path, done: Callable[..., Done], tmp_path: Path
) -> None:
    settings = DownlinkSettings(precision=precision)
    plain = done(downlink=settings).events

    def wipe(action: str, device: Path) -> None:
        if action == "evaluate.student" and device.name == "0":
            shutil.rmtree(device / "students", ignore_errors=True)

    app = Listening(wipe)
    wiped = run(copied_run(trained, tmp_path, downlink=settings), app)
    assert results(wiped) == results(plain)
    assert failures(wiped) == []
    last = app.sent(0)[-2:]
    assert [(student.base != "") for _, student in last] == [True, False]
    assert last[0][1].version == last[1][1].version
    rows = [jobs(events)[0]["traffic"] for events in (plain, wiped)]
    assert len(rows[1]) == len(rows[0]) + 1, "what was sent in vain is not counted"


@pytest.mark.parametrize("item", ["base", "canaries"])
def test_a_device_that_always_lacks_something_does_not_go_on_for_ever(
    item: str, trained: Path, tmp_path: Path
) -> None:
    asked: Counter[str] = Counter()

    def lacking(action: str, device: Path) -> Any:
        if device.name != "0" or action == "query.prototypes":
            return None
        asked[action] += 1
        return encode(MissingDependency(item, "0" * 64))

    events = run(copied_run(trained, tmp_path, arms=("fedstill",)), Listening(lacking))
    assert set(failures(events)) == {f"says that it lacks {item} 000000000000"}
    assert asked["evaluate.student"] <= 3  # the teacher's, the student's and the student whole
    assert jobs(events)[0]["evaluations"] == []
    assert len(jobs(events)[1]["evaluations"]) == 1


def test_a_tampered_student_on_the_device_is_sent_again(
    trained: Path, done: Callable[..., Done], tmp_path: Path
) -> None:
    def tamper(action: str, device: Path) -> None:
        if action == "evaluate.student":
            for path in (device / "students").glob("*.safetensors"):
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)

    plain = done(downlink=DownlinkSettings()).events
    app = Listening(tamper)
    events = run(copied_run(trained, tmp_path, downlink=DownlinkSettings()), app)
    assert results(events) == results(plain)
    assert failures(events) == []
    assert [student.base != "" for _, student in app.sent(0)[-2:]] == [True, False]


class Spoiling(Listening):
    """On its way to device 0 every student is changed by ``spoil``."""

    def __init__(self, spoil: Callable[[Student], Student]) -> None:
        super().__init__()
        self.spoil = spoil

    def __call__(self, message: Message, context: Context) -> Message:
        action = message.metadata.message_type
        if action in REQUESTS and context.node_config["partition-id"] == 0:
            request = decode(REQUESTS[action], message.content)
            message.content = encode(replace(request, student=self.spoil(request.student)))
        return super().__call__(message, context)


def bit_flipped(student: Student) -> Student:
    weights = student.weights.copy()
    weights[-1] ^= 1
    return replace(student, weights=weights)


SPOILT = {
    "weights: digest:": bit_flipped,
    "weights: payload:": lambda student: replace(student, weights=student.weights[:3]),
    "version: the update leads to": lambda student: replace(student, version="0" * 64),
    "version: the update leads to another class order": lambda student: replace(
        student, class_names=student.class_names[::-1]
    ),
}


@pytest.mark.parametrize("reason", SPOILT)
def test_a_student_that_was_changed_on_its_way_is_refused_by_name(
    reason: str, trained: Path, tmp_path: Path
) -> None:
    run_dir = copied_run(trained, tmp_path, arms=("all_distill",))
    events = run(run_dir, Spoiling(SPOILT[reason]))
    expected = "class_names: expected" if "class order" in reason else reason
    assert len(failures(events)) == 2
    assert all(expected in text and "\n" not in text for text in failures(events))
    assert ModelStore(run_dir / "devices" / "0" / "students").versions() == []
    assert jobs(events, "all_distill")[1]["evaluations"] != []


def installing(minimum: float, arm: str = "fedstill") -> DownlinkSettings:
    return DownlinkSettings(install=arm, canaries=6, minimum_agreement=minimum)


def installed(run_dir: Path, device: int) -> str:
    found = ModelStore(run_dir / "devices" / str(device) / "students").current()
    return found.version if found else ""


def test_the_final_student_is_installed_and_the_run_says_so(trained: Path, tmp_path: Path) -> None:
    run_dir, app = copied_run(trained, tmp_path, downlink=installing(0.0)), Listening()
    events = run(run_dir, app)
    said = [event for event in events if event["event"] == "install"]
    assert {(event["arm"], event["client"], event["installed"]) for event in said} == {
        ("fedstill", 0, True),
        ("fedstill", 1, True),
    }
    for client, job in jobs(events).items():
        evaluated = [student for action, student in app.sent(client) if action == "evaluate.student"]
        assert job["install"]["current"] == installed(run_dir, client) == evaluated[-1].version
        assert job["install"]["reason"] == ""
        assert 0 <= job["install"]["agreement"] <= 1
    assert all(job["install"] == {} for job in jobs(events, "all_distill").values())


def test_a_student_that_disagrees_with_the_teacher_is_rolled_back(trained: Path, tmp_path: Path) -> None:
    """The tiny students agree with the teacher on hardly any clip; the previous one stays."""
    run_dir = copied_run(
        trained, tmp_path, downlink=installing(0.0, "class_support"), arms=("class_support",),
        scenarios=("latency_insensitive",),
    )  # fmt: skip
    run(run_dir, Listening())
    before = [installed(run_dir, device) for device in (0, 1)]
    pointers = [run_dir / "devices" / str(device) / "students" / POINTER for device in (0, 1)]
    for pointer in pointers:
        os.utime(pointer, (1, 1))
    plan = read_plan(run_dir)
    for left in ("metrics.jsonl", JOURNAL_FILE):
        (run_dir / left).unlink()
    strict = replace(
        plan, downlink=installing(1.0, "class_support"), distillation=plan.distillation, ours=stronger(plan)
    )
    write_plan(strict)
    events = run(run_dir, Listening())
    assert failures(events) == []
    for device in (0, 1):
        outcome = jobs(events, "class_support")[device]["install"]
        assert outcome["installed"] is False
        assert outcome["reason"].startswith("agrees with the teacher on ")
        assert outcome["current"] == before[device] == installed(run_dir, device)
        known = run_dir / "devices" / str(device) / KNOWN_CLIPS_FILE
        assert (
            pointers[device].stat().st_mtime > known.stat().st_mtime
        )  # nobody waits for a student any longer


def stronger(plan: RunPlan) -> Any:
    """Other training, so that the student is another one than before."""
    return replace(plan.ours, optimiser=replace(plan.ours.optimiser, learning_rate=0.5))


def test_canaries_travel_once(trained: Path, tmp_path: Path) -> None:
    run_dir = copied_run(trained, tmp_path, downlink=installing(0.0), arms=("fedstill",))
    first, again = Listening(), Listening()
    run(run_dir, first)
    for left in ("metrics.jsonl", JOURNAL_FILE):
        (run_dir / left).unlink()
    events = run(run_dir, again)
    count = [sum(action == "train.install" for action, _ in app.sent(0)) for app in (first, again)]
    assert count == [2, 1]
    assert jobs(events)[0]["install"]["installed"] is True
    assert len(list((run_dir / "devices" / "0" / "canaries").glob("*.safetensors"))) == 1


def test_other_canaries_than_named_are_refused(trained: Path, tmp_path: Path) -> None:
    class Swapping(Listening):
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train.install":
                request = decode(InstallRequest, message.content)
                if len(request.teacher):
                    message.content = encode(replace(request, teacher=request.teacher[::-1].copy()))
            return super().__call__(message, context)

    run_dir = copied_run(trained, tmp_path, downlink=installing(0.0), arms=("fedstill",))
    events = run(run_dir, Swapping())
    assert all(text.startswith("canaries: these clips are") for text in failures(events))
    assert len(failures(events)) == 2
    outcome = jobs(events)[0]["install"]
    assert outcome["installed"] is False
    assert outcome["reason"] in failures(events)
    assert json.dumps(outcome)
