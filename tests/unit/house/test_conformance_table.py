"""The page of the Open Inference Protocol knows every call, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

from fedstill.cloud_server.serving.endpoints.open_inference import REFUSED
from fedstill.protos import open_inference_pb2 as pb

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "open-inference.md").read_text(encoding="utf-8")


def test_every_call_is_in_the_table() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    calls = {method.name for method in service.methods} | set(REFUSED)
    assert len(calls) > 15
    assert {name for name in calls if f"`{name}`" not in PAGE} == set()


def test_every_yes_names_a_test_that_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 20
    assert named - defined == set()
    ours = [
        row.split("|")[-4] for row in PAGE.splitlines() if row.startswith("|") and row.count("|") in (5, 6)
    ]
    bare = [cell for cell in ours if cell.strip().startswith("yes") and "`test_" not in cell]
    assert [cell for cell in bare if "see the calls" not in cell] == []
