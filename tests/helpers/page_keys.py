"""The keys of the page's JSON: as they come, and as docs/reference/serving-page.md says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "serving-page.md"
BY_NAME = ("totals.reasons", "reasons", "schedules")
"""Their keys are names."""


def documented(answer: str) -> set[str]:
    """Of ``events`` or ``history``."""
    part = PAGE.read_text(encoding="utf-8").split(f"<!-- {answer} -->")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", part, re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def keys(plain: Any, path: str = "") -> Iterator[str]:
    """Every path to a value: ``a.b``, ``list[]``."""
    if isinstance(plain, dict) and plain:
        for name, value in plain.items():
            yield from keys(value, f"{path}.{'*' if path in BY_NAME else name}".removeprefix("."))
    elif isinstance(plain, list) and plain:
        for value in plain:
            yield from keys(value, f"{path}[]")
    elif plain != {} and plain != []:
        yield path


def assert_documented(plain: dict[str, Any], answer: str = "events") -> set[str]:
    """Nothing undocumented, nothing that is not strict JSON; returns the keys that are there."""
    found = set(keys(json.loads(json.dumps(plain, allow_nan=False))))
    assert found - documented(answer) == set()
    return found
