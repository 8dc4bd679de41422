"""The page of ``reductions.py``: accuracy, recovered share of the loss, McNemar's p, and time, per task and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BUDGETS = ("-15", "-20", "-30")
"""The constant schedules whose cost all others have."""
FAMILIES = ("merging", "layer-wise merging", "larger patches")
"""The first is the constant schedule itself."""


def page(kept: Mapping[str, Any], chosen: Mapping[str, str]) -> str:
    """Markdown. kept: the content of answers.json; chosen: schedule names by "task budget family"."""
    raise NotImplementedError
