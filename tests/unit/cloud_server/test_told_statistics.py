"""Whether a student may take statistics of the device's clips travels with it, unless the device does not know that."""

from __future__ import annotations

from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest

from fedstill.cloud_server.federation.device_session import DeviceSession
from fedstill.cloud_server.federation.downlink import Downlink
from fedstill.cloud_server.federation.exchange import DeviceLacks, WireCost
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.specs import EncoderSpec, NetworkSpec
from fedstill.protos.messages import EvaluationRequest, Hello, MissingDependency, Student, WireError

MAJOR, MINOR = map(int, version("fedstill").split(".")[:2])
NOW, OLDER = f"{MAJOR}.{MINOR}.0", f"{MAJOR}.{MINOR - 1}.0" if MINOR else "0.0.9"
NET = AudioVisualNet(NetworkSpec(EncoderSpec("resnet10", 2, "compact"), 4, 2, frame_channels=1))


def asked(release: str, monkeypatch: pytest.MonkeyPatch, lacking: bool = False) -> list[Student]:
    """The students of an evaluation; ``lacking``: the device has lost the base of the update."""
    sent: list[Student] = []

    def exchange(self: DeviceSession, action: str, request: EvaluationRequest, _: object) -> None:
        sent.append(request.student)
        if lacking and len(sent) == 1:
            raise DeviceLacks(MissingDependency("base", request.student.base), WireCost(0, 0))

    monkeypatch.setattr(DeviceSession, "_exchange", exchange)
    downlink = Downlink("exact", ("calm", "cross"))
    downlink.arrived(downlink.shipment(NET))
    downlink.own_statistics, downlink.least_share = 0.5, 0.7
    line: Any = SimpleNamespace(hello=Hello("hall", release, 0))
    key = JobKey("latency_insensitive", "fedstill", 0, 0)
    session = DeviceSession(key, line, downlink, None, None, None)  # type: ignore[arg-type]
    session.evaluate(NET, 1)
    return sent


def told(student: Student) -> tuple[float, float]:
    return student.own_statistics, student.least_share


def test_it_travels_with_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    (student,) = asked(NOW, monkeypatch)
    assert told(student) == (0.5, 0.7)
    assert student.base


def test_an_older_device_gets_the_student_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    (student,) = asked(OLDER, monkeypatch)
    assert told(student) == (0, 0)


@pytest.mark.parametrize(("release", "expected"), [(NOW, (0.5, 0.7)), (OLDER, (0, 0))])
def test_it_is_the_same_once_more_with_all_weights(
    release: str, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, whole = asked(release, monkeypatch, lacking=True)
    assert first.base
    assert not whole.base
    assert len(whole.weights) > len(first.weights)
    assert told(first) == told(whole) == expected


@pytest.mark.parametrize("values", [(-0.1, 0.0), (1.1, 0.0), (0.5, 1.5), (float("nan"), 0.0)])
def test_what_is_no_part_is_refused(values: tuple[float, float]) -> None:
    student = Downlink("exact", ("calm", "cross")).shipment(NET).student
    with pytest.raises(WireError, match="needs a part from 0 to 1"):
        Student(student.weights, student.spec, student.class_names, student.version, "", *values)
