"""A device of a service that goes away before it was asked all keeps the student that it has."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from fedstill.cloud_server.federation import jobs
from fedstill.cloud_server.federation.device_line import DeviceLine
from fedstill.protos.messages import Hello


@pytest.mark.parametrize(
    ("present", "installs"),
    [({}, False), ({0: Hello("hall", "1", 0, student="a" * 64)}, False), ({0: Hello("hall", "1", 0)}, True)],
    ids=["away", "with a student", "new"],
)
def test_the_generic_student_is_for_a_device_without_one(
    present: dict[int, Hello], installs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[str] = []
    registry = MagicMock()
    registry.present.return_value = present
    job: Any = object.__new__(jobs.PersonalisationJob)
    job.plan, job.key = SimpleNamespace(service=True), SimpleNamespace(sweep="", arm="fedstill")
    job.journal, job.slots = MagicMock(), SimpleNamespace(held=nullcontext)
    job.cloud = job._personal = None
    job.session = SimpleNamespace(line=DeviceLine(MagicMock(), registry, 0, 300.0), downlink=MagicMock())
    job.progress = SimpleNamespace(failures=["its device was not online"], record="not finished")
    job._student, job._deploy = lambda: "generic", installed.append
    monkeypatch.setattr(jobs, "is_deployed", lambda *_: True)
    monkeypatch.setattr(jobs, "keep_student", lambda *_: None)
    assert job.run() == "not finished"
    assert installed == (["generic"] if installs else [])
