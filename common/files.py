"""Helpers for writing files: numbers in JSON, and never half a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any


def plain_value(value: Any) -> Any:
    """numpy and torch scalars as numbers, anything else (a Path in the configuration) as text."""
    return value.item() if hasattr(value, "item") else str(value)


def write_text_atomically(path: Path, text: str) -> Path:
    """Write a file so that a reader sees the old or the new one, never half of it; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as part:
        try:
            part.write(text)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).chmod(0o644)
            Path(part.name).replace(path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    return path
