"""uvicorn's own set-up of logging shuts down every handler of the process, and some of them close what they write to:
absl's (OR-tools, TensorBoard) closed pytest's capture, and every later test of that worker failed."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDERS = ("benchmarks", "cli", "cloud_server", "common", "edge_client", "evaluation", "simulation", "tests")


def _calls(source: str) -> list[bool]:
    """For each uvicorn.Config: whether it leaves the process' logging alone."""
    return [
        any(
            keyword.arg == "log_config"
            and isinstance(keyword.value, ast.Constant)
            and keyword.value.value is None
            for keyword in node.keywords
        )
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "uvicorn.Config"
    ]


def test_no_server_in_the_process_sets_logging_up_anew() -> None:
    root = Path(__file__).parents[3]
    found = {
        file: calls
        for folder in FOLDERS
        for file in (root / folder).rglob("*.py")
        if (calls := _calls(file.read_text(encoding="utf-8")))
    }
    assert len(found) >= 6
    assert [str(file.relative_to(root)) for file, calls in found.items() if not all(calls)] == []
    assert _calls("uvicorn.Config(app)") == [False], "the test can fail"
