"""Plain TOML / JSON values to typed, frozen dataclasses and back; the wrong key is named, with the likely right one."""

from __future__ import annotations

import sys
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


class PlainError(ValueError):
    """A value that does not fit its declared type; starts with the dotted key."""


def from_plain(kind: type[Kind], value: object, *, complete: bool = False) -> Kind:
    """Build a ``kind`` from plain values.

    Absent fields take their defaults; those without one are an error, and with ``complete`` all of them are.

    Raises:
        PlainError: ``selection.budgt: unknown key, did you mean budget?`` and the like.
    """
    result: Kind = _decode(kind, value, "", complete)
    return result


def to_plain(value: Any) -> dict[str, Any]:
    """A dataclass as nested dicts and lists, ready for JSON."""
    return asdict(value)


def plain_value(value: Any) -> Any:
    """For ``json.dumps(default=)``: numpy and torch scalars as numbers, all else (such as a Path) as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _decode(kind: Any, value: Any, where: str, complete: bool) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _record(kind, value, where, complete)
    if origin is Literal:
        if not any(value == arg and type(value) is type(arg) for arg in args):
            raise PlainError(f"{where}: {value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(kinds):
            raise PlainError(f"{where}: needs {len(kinds)} values, got {len(value)}")
        return tuple(
            _decode(each, item, f"{where}[{index}]", complete)
            for index, (each, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {key: _decode(args[1], item, f"{where}.{key}", complete) for key, item in value.items()}
    if origin is UnionType:
        return (
            None
            if value is None
            else _decode(next(a for a in args if a is not NoneType), value, where, complete)
        )
    if kind is Any:
        return value
    if kind is float and type(value) is int and abs(value) < sys.float_info.max:
        return float(value)
    if isinstance(kind, type) and issubclass(kind, Enum) and value in {item.value for item in kind}:
        return kind(value)
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    wanted = f"a list of {_name(args[0])}" if origin is tuple else _name(kind)
    raise PlainError(f"{where or 'top level'}: needs {wanted}, got {str(value)[:40]!r}")


def _record(kind: Any, value: Any, where: str, complete: bool) -> Any:
    if not isinstance(value, dict):
        raise PlainError(f"{where or 'top level'}: needs a table, got {str(value)[:40]!r}")
    hints = _hints(kind)
    for key in value:
        if key not in hints:
            raise PlainError(f"{_join(where, key)}: unknown key{_suggestion(key, hints)}")
    values = {key: _decode(hints[key], item, _join(where, key), complete) for key, item in value.items()}
    for field in fields(kind):
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if field.name not in values and (complete or not optional):
            raise PlainError(f"{_join(where, field.name)}: missing")
    try:
        return kind(**values)
    except PlainError:
        raise
    except ValueError as error:
        about_a_key = str(error).partition(":")[0] in hints
        raise PlainError(_join(where, str(error)) if about_a_key else f"{where}: {error}") from error


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _suggestion(key: str, known: dict[str, Any]) -> str:
    close = get_close_matches(key, known, n=1)
    return f", did you mean {close[0]}?" if close else f" (known: {', '.join(sorted(known))})"


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
