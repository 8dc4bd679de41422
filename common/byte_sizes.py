"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(B|kB|MB|GB)", re.ASCII)


def read_size(text: str) -> int:
    """Bytes, from ``50MB`` or ``1.5 GB``; a kB is 1000 bytes, as in contracts.

    Raises:
        ValueError: it means something else, or nothing; one line.
    """
    found = SIZE.fullmatch(text.strip())
    size = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        raise ValueError(f"{text!r} is no number of bytes: write a size such as 50MB or 1.5GB")
    return size


def size_text(size: float) -> str:
    """Two or three digits: ``312MB``, ``1.5GB``."""
    unit = next((name for name in ("GB", "MB", "kB") if size >= UNITS[name]), "B")
    value = size / UNITS[unit]
    return f"{value:.1f}{unit}" if value < 10 and unit == "GB" else f"{value:.0f}{unit}"
