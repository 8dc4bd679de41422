"""A student that does not do on the device what was promised is not installed: the device is asked once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.runs import copied_run, prepared_run

from fedstill.cloud_server.distillation import class_mix
from fedstill.cloud_server.distillation.candidates import Candidate, Estimate, Training
from fedstill.cloud_server.distillation.class_mix import ClassMix, ClassMixes
from fedstill.cloud_server.federation import jobs, personal_student
from fedstill.cloud_server.journal.event_log import METRICS_FILE, read_events
from fedstill.cloud_server.journal.journal import open_journal
from fedstill.common.run_layout import JOURNAL_FILE
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.protos.messages import PrototypeRequest, PrototypeUpload
from fedstill.simulation.inprocess import run_inprocess

pytestmark = pytest.mark.slow

GENERIC_ARM = "all_distill_equal_steps"
PLAN = (
    f"run.arms=['{GENERIC_ARM}', 'fedstill']",
    "run.scenarios=['latency_insensitive']",
    "guard.test=true",
)


@pytest.fixture(scope="module", autouse=True)
def chosen() -> Iterator[None]:
    """The networks of a tiny run know nothing, so a rendered student is chosen though it is not surely better."""

    def the_first(estimates: tuple[Estimate, ...], tested: bool) -> Estimate | None:
        assert tested
        return next(iter(estimates), None)

    def one(rendered: bool, mix: object, *, prototypes: bool) -> tuple[Candidate, ...]:
        return (Candidate(Training(rendered=rendered), prior=not rendered),)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_mix, "CLIPS_PER_NUMBER", 1)
        patch.setattr(personal_student, "best_of", the_first)
        patch.setattr(personal_student, "candidates_for", one)
        yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every device says that the student is as sure as was promised."""
    run_dir = prepared_run(tmp_path_factory.mktemp("kept"), PLAN)
    return run(run_dir, kept=True)


@pytest.fixture
def jobs_left(kept: Path, tmp_path: Path) -> Path:
    """The same run with its jobs yet to be done."""
    return copied_run(kept, tmp_path, METRICS_FILE, f"{JOURNAL_FILE}*")


def run(run_dir: Path, kept: bool) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "keeps_promise", lambda promised, found, left: kept)
        run_inprocess(run_dir, 2)
    return run_dir


def jobs_of(run_dir: Path, arm: str = "fedstill") -> list[dict[str, Any]]:
    """Of both clients, in their order."""
    found = [event for event in read_events(run_dir) if event["event"] == "job" and event["arm"] == arm]
    assert sorted(job["client"] for job in found) == [0, 1]
    return sorted(found, key=lambda job: int(job["client"]))


def right(run_dir: Path, arm: str) -> list[int]:
    """The clips that each device gets right."""
    return [evaluation["correct"] for job in jobs_of(run_dir, arm) for evaluation in job["evaluations"]]


def rounds_asked(run_dir: Path) -> list[int]:
    """The round of every accepted upload; nobody but ``fedstill`` asks for any."""
    journal = open_journal(run_dir)
    uploads = journal.uploaded()
    journal.close()
    return sorted(asked for _, asked, _ in uploads)


def test_a_student_that_keeps_its_promise_stays(kept: Path) -> None:
    for job in jobs_of(kept):
        assert job["choice"]["chosen"] == "rendered"
        assert job["choice"]["estimate"] is not None
    assert rounds_asked(kept) == [jobs.SUMMARY] * 2 + [jobs.PROMISE] * 2


def test_a_doubted_student_is_replaced_by_the_generic_one(jobs_left: Path) -> None:
    run(jobs_left, kept=False)
    for job in jobs_of(jobs_left):
        choice = job["choice"]
        assert choice["chosen"] == "generic"
        assert choice["reason"].startswith("not as much surer of the device's clips")
        assert [choice["estimate"], choice["low"], choice["high"]] == [None] * 3
    assert rounds_asked(jobs_left) == [jobs.SUMMARY] * 2 + [jobs.PROMISE] * 2
    assert right(jobs_left, "fedstill") == right(jobs_left, GENERIC_ARM)


def test_a_doubted_device_gets_no_class_bias_either(jobs_left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A microphone that nobody understands may look like other classes: on a device of the study, the bias that was
    installed instead cost 30 points."""

    def other_classes(self: ClassMixes, summary: PrototypeUpload, rng: np.random.Generator) -> ClassMix:
        classes = summary.probabilities.shape[1]
        shares = (0.9, *[0.1 / (classes - 1)] * (classes - 1))
        return ClassMix(True, "other classes", shares, (True,) * classes, (9.0, *[0.0] * (classes - 1)))

    monkeypatch.setattr(ClassMixes, "judge", other_classes)
    run(jobs_left, kept=False)
    for job in jobs_of(jobs_left):
        assert job["choice"]["chosen"] == "generic"
        assert job["class_mix"]["supported"] is False
        assert not any(job["class_mix"]["class_bias"])
    assert right(jobs_left, "fedstill") == right(jobs_left, GENERIC_ARM)


def test_a_device_that_does_not_answer_keeps_the_generic_student(
    jobs_left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Device.prototypes

    def refuses(self: Device, request: PrototypeRequest) -> PrototypeUpload:
        if request.job.round == jobs.PROMISE:
            raise DeviceError("not twice")
        return answer(self, request)

    monkeypatch.setattr(Device, "prototypes", refuses)
    run(jobs_left, kept=True)
    assert [job["choice"]["chosen"] for job in jobs_of(jobs_left)] == ["generic"] * 2
    assert all("not twice" in job["choice"]["reason"] for job in jobs_of(jobs_left))
    failures = [event for event in read_events(jobs_left) if event["event"] == "failure"]
    assert [(one["arm"], one["round"]) for one in failures] == [("fedstill", jobs.PROMISE)] * 2
    assert right(jobs_left, "fedstill") == right(jobs_left, GENERIC_ARM)
