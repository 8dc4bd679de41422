"""The benchmarks of edge inference keep working."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str) -> None:
    runpy.run_path(str(BENCHMARKS / f"{name}.py"))["main"](["--quick"])


def test_batched_answers_are_those_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    run("inference_batching")
    assert capsys.readouterr().out.count("same answers") == 2


@pytest.mark.slow
def test_a_device_is_driven_through_every_part_of_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    run("rung_choice")
    report = capsys.readouterr().out
    assert "at most" in report
    assert all(segment in report for segment in ("good", "64 kbit/s", "outage", "recovery"))
