"""The reference pages say what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    ("page", "generator"),
    [("experiment.md", "generate_reference.py"), ("cli.md", "generate_cli_reference.py")],
)
def test_a_generated_page_is_up_to_date(page: str, generator: str) -> None:
    written = (DOCS / "reference" / page).read_text(encoding="utf-8")
    generated = runpy.run_path(str(DOCS / generator))["page"]()
    assert written == generated, "run: python docs/generate_reference.py"


def test_every_command_is_on_the_page_of_the_command_line() -> None:
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    for command in ("simulate", "loadtest virtual", "loadtest live", "tasks profile", "certs init"):
        assert f"\n## {command}\n" in text
    assert "| `--seeds N` | Number of seeds |" in text
