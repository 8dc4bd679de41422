"""What a person checks first: the classes and how many clips each has, and names that a person would take for one."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

from fedstill.datasets.audiovisual.clip import ClipSource

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


def class_lines(source: ClipSource) -> list[str]:
    """One line per class with its clips in each split, then the unlabelled ones, then look-alikes."""
    counts = Counter((info.label, info.split) for info in source.index)
    labels: list[tuple[int | None, str]] = [*enumerate(source.class_names), (None, "without a label")]
    lines = [
        f"{name}: {counts[label, 'public']} public, {counts[label, 'private']} private clips"
        for label, name in labels
        if label is not None or counts[None, "private"]
    ]
    return lines + [look_alikes_line(group) for group in look_alikes(source.class_names)]
