"""JSON to typed records: what a run file holds is checked field by field, and the wrong one is named."""

from __future__ import annotations

import os
import tempfile
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


def decode(kind: Any, value: Any, where: str = "") -> Any:
    """A JSON value as the annotated type (records, tuples, dicts, `| None`, plain values).

    Every field of a record must be there and no other. Raises ValueError naming the field, such as
    `rows[3].correct`.
    """
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(decode(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: decode(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is UnionType:
        return None if value is None else decode(next(a for a in args if a is not NoneType), value, where)
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise ValueError(f"{where or 'top level'}: {str(value)[:30]!r} is not {getattr(kind, '__name__', kind)}")


def _record(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    strange, absent = value.keys() - hints.keys(), hints.keys() - value.keys()
    if strange or absent:
        word, names = ("unknown", strange) if strange else ("missing", absent)
        raise ValueError(f"{where or 'top level'}: {word} {', '.join(sorted(names))}")
    decoded = {name: decode(hints[name], item, f"{where}.{name}".lstrip(".")) for name, item in value.items()}
    try:
        return kind(**decoded)
    except ValueError as error:
        raise ValueError(f"{where or 'top level'}: {error}") from error


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


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
