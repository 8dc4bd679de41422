"""The student that a device uses is there to be judged again, or it is as if there were none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import prepared_run

from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.distillation.teacher import student_spec
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.student_in_use import StudentInUse, keep_in_use, open_in_use
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.protos.messages import Hello

FIRST, SECOND = (JobKey("latency_insensitive", "fedstill", 3, 0, visit=visit) for visit in (0, 1))
VERSION = "ab" * 32
BIAS = np.linspace(-1, 1, 6, dtype=np.float32)
HELLO = Hello(partition=3, name="hall", version="0.1.0", student=VERSION)


@pytest.fixture
def cloud(tmp_path: Path) -> SeedCloud:
    run_dir = prepared_run(tmp_path, ("guard.test=true",))
    return SeedCloud(replace(read_plan(run_dir), service=True), 0, Metrics(run_dir))


def network(cloud: SeedCloud, seed: int) -> AudioVisualNet:
    spec = student_spec(cloud.public, cloud.plan.teacher, cloud.plan.student)
    return AudioVisualNet(spec, torch.Generator().manual_seed(seed)).eval()


def kept(cloud: SeedCloud) -> StudentInUse:
    given = StudentInUse(VERSION, "rendered", network(cloud, 1), network(cloud, 2), BIAS)
    keep_in_use(cloud, FIRST, given)
    return given


def is_same(one: AudioVisualNet | None, other: AudioVisualNet | None) -> bool:
    assert one is not None
    assert other is not None
    mine, others = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], others[name]) for name in mine)


def test_it_is_found_by_the_version_that_the_device_names(cloud: SeedCloud) -> None:
    given = kept(cloud)
    found = open_in_use(cloud, SECOND, HELLO)
    assert found is not None
    assert (found.version, found.name) == (VERSION, "rendered")
    np.testing.assert_array_equal(found.bias, BIAS)
    assert is_same(found.net, given.net)
    assert is_same(found.judged(cloud), given.checked)
    keep_in_use(cloud, SECOND, replace(given, version="cd" * 32, net=None, checked=None))
    assert open_in_use(cloud, SECOND, HELLO) is None
    generic = open_in_use(cloud, replace(SECOND, visit=2), replace(HELLO, student="cd" * 32))
    assert generic is not None
    assert (generic.net, generic.checked) == (None, None)


def test_another_student_another_device_and_what_is_not_tested_are_not_compared(cloud: SeedCloud) -> None:
    kept(cloud)
    assert open_in_use(cloud, SECOND, None) is None, "the device is away"
    assert open_in_use(cloud, SECOND, replace(HELLO, student="")) is None, "it has none"
    assert open_in_use(cloud, SECOND, replace(HELLO, student="cd" * 32)) is None
    assert open_in_use(cloud, replace(SECOND, client=4), HELLO) is None
    assert open_in_use(cloud, FIRST, HELLO) is None, "this job has made it, and was interrupted"
    plan = cloud.plan
    for other in (
        replace(plan, teacher_number=2),
        replace(plan, service=False),
        replace(plan, guard=replace(plan.guard, test=False)),
    ):
        assert open_in_use(replace(cloud, plan=other), SECOND, HELLO) is None
    keep_in_use(cloud, SECOND, None)
    assert open_in_use(cloud, replace(SECOND, visit=2), HELLO) is None


@pytest.mark.parametrize(
    "change",
    [
        {"bias": [10**400] * 6},
        {"bias": [float("inf")] * 6},
        {"bias": [1.0]},
        {"bias": None},
        {"version": 5},
        [],
        None,
    ],
)
def test_a_damaged_note_is_as_if_there_were_none(change: object, cloud: SeedCloud) -> None:
    kept(cloud)
    file = cloud.plan.models / "in_use" / "3" / "note.json"
    note = json.loads(file.read_text())
    file.write_text(json.dumps(note | change if isinstance(change, dict) else change))
    assert open_in_use(cloud, SECOND, HELLO) is None


def test_a_student_of_another_network_is_not_compared(cloud: SeedCloud) -> None:
    given = kept(cloud)
    assert given.net is not None
    cloud.keep(
        cloud.plan.models / "in_use" / "3" / "student",
        AudioVisualNet(replace(given.net.spec, feature_width=24)),
    )
    assert open_in_use(cloud, SECOND, HELLO) is None


@pytest.mark.parametrize("damage", ["checked", "student.json"])
def test_what_is_damaged_or_half_written_is_as_if_it_were_not_there(damage: str, cloud: SeedCloud) -> None:
    kept(cloud)
    folder = cloud.plan.models / "in_use" / "3"
    match damage:
        case "checked":
            content = (folder / "checked.safetensors").read_bytes()
            (folder / "checked.safetensors").write_bytes(content[: len(content) // 2])
        case name:
            (folder / name).unlink()
    assert open_in_use(cloud, SECOND, HELLO) is None


def test_a_disk_that_is_full_leaves_no_mixture_and_costs_no_visit(
    cloud: SeedCloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = kept(cloud)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SeedCloud, "keep", full)
    keep_in_use(cloud, SECOND, replace(given, version="cd" * 32))
    assert caplog.messages == ['event=student_not_kept client=3 reason="No space left on device"']
    for version in (VERSION, "cd" * 32):
        assert open_in_use(cloud, replace(SECOND, visit=2), replace(HELLO, student=version)) is None
