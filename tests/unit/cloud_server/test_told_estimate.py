"""A device is told what to expect of its student, unless it is of a release that does not know the field."""

from __future__ import annotations

from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedstill.cloud_server.federation.device_session import DeviceSession
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.models.weights.canaries import Canaries
from fedstill.protos.messages import UNKNOWN, Hello, InstallRequest, Student

MAJOR, MINOR = map(int, version("fedstill").split(".")[:2])


@pytest.mark.parametrize(
    ("hello", "expected", "told"),
    [
        (Hello("hall", f"{MAJOR}.{MINOR}.0", 0), (0.8, 0.75, 0.86), (0.8, 0.75, 0.86)),
        (Hello("hall", f"{MAJOR}.{MINOR + 1}.0", 0), (0.8, 0.75, 0.86), (0.8, 0.75, 0.86)),
        (Hello("hall", f"{MAJOR}.{MINOR - 1}.0" if MINOR else "0.0.9", 0), (0.8, 0.75, 0.86), (UNKNOWN,) * 3),
        (Hello("hall", f"{MAJOR}.{MINOR}.0", 0), None, (UNKNOWN,) * 3),
        (None, (0.8, 0.75, 0.86), (UNKNOWN,) * 3),
    ],
    ids=["the same release", "a newer one", "an older one", "nobody can tell", "away"],
)
def test_what_is_told(
    hello: Hello | None,
    expected: tuple[float, float, float] | None,
    told: tuple[float, float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[InstallRequest] = []
    student = Student(np.ones(3, np.uint8), "{}", ("calm",), "ab" * 32)
    downlink: Any = SimpleNamespace(shipment=lambda _: SimpleNamespace(student=student))
    key, line = JobKey("latency_insensitive", "fedstill", 0, 0), SimpleNamespace(hello=hello)
    session = DeviceSession(key, line, downlink, None, None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(DeviceSession, "_ask", lambda self, action, request, *_: sent.append(request))
    nothing = (
        np.empty((0, 1, 1), np.float32),
        np.empty((0, 1, 1, 1, 1), np.uint8),
        np.empty((0, 1), np.float32),
    )
    session.install(None, 1, Canaries(*nothing), np.empty(0, np.uint8), 0.5, expected)  # type: ignore[arg-type]
    (request,) = sent
    assert (request.expected, request.low, request.high) == told
