"""The reference page says what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_experiment_keys_is_up_to_date() -> None:
    written = (DOCS / "reference" / "experiment.md").read_text(encoding="utf-8")
    generated = runpy.run_path(str(DOCS / "generate_reference.py"))["page"]()
    assert written == generated, "run: python docs/generate_reference.py"
