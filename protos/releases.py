"""Which releases of fedstill understand each other: those whose versions differ by one minor number at most."""

from __future__ import annotations

import re

MOST_APART = 1
"""Minor versions between a coordinator and its devices, so that either side can be upgraded first."""


def why_not_together(device: str, cloud: str) -> str:
    """One line that says which side to upgrade; empty if this device and this cloud may work together."""
    if device == cloud:
        return ""
    one, other = _release(device), _release(cloud)
    said = f"runs fedstill {device[:40]!r}, the cloud {cloud[:40]!r}"
    if one is None or other is None:
        return f"{said}: install the same version on both"
    if one[0] == other[0] and abs(one[1] - other[1]) <= MOST_APART:
        return ""
    return f"{said}: upgrade the {'device' if one < other else 'coordinator'}"


def is_older(one: str, other: str) -> bool:
    """Whether the first release is before the other, by its minor version: it may not know a message's new fields."""
    first, second = _release(one), _release(other)
    return first is not None and second is not None and first < second


def _release(version: str) -> tuple[int, int] | None:
    """(major, minor); None if the text is no version."""
    found = re.match(r"([0-9]{1,6})\.([0-9]{1,6})(?![0-9])", version, re.ASCII)
    return (int(found[1]), int(found[2])) if found else None
