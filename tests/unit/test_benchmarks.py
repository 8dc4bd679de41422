"""The benchmarks keep working and keep finding both ways equal."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["bank", "selection", "serving_decision"])
def test_a_quick_benchmark_ends_well_and_prints_a_ratio(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(BENCHMARKS / f"{name}.py"))["main"](["--quick"])
    assert "ratio" in capsys.readouterr().out
