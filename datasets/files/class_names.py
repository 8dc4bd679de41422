"""Class names that a person would take for one: ``Happy`` and ``happy``, ``well done`` and ``well_done``."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_CYRILLIC_AND_GREEK = str.maketrans("асеорхуіѕјαορν", "aceopxyisjaopv")
"""Letters that look Latin."""


def look_alikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in case, spaces, punctuation, accents or the alphabet of a letter."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        plain = unicodedata.normalize("NFKD", name).casefold().translate(_CYRILLIC_AND_GREEK)
        key = "".join(letter for letter in plain if letter.isalnum())
        groups[key or name].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def look_alikes_line(group: tuple[str, ...]) -> str:
    """What to tell the owner about such a group."""
    return f"classes {' and '.join(map(repr, group))} look alike: are they one? They count as {len(group)}"
