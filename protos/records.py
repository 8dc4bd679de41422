"""The codec between the messages of ``messages.py`` and Flower's records.

One rule for all messages: array fields go into an ArrayRecord named ``arrays``, everything else into one
ConfigRecord named ``fields`` (JSON per field). Decoding demands exactly the declared fields, so an extra field, say a
label that a device tries to send along, is refused by name.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedstill.protos.messages import WireError

Message = TypeVar("Message")

RECORDS = 2
PLAIN = (str, int, float, bool, tuple[str, ...])


def encode(message: object) -> RecordDict:
    """Pack a message dataclass into the two records."""
    arrays, plain = _flatten(message)
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
            "fields": ConfigRecord({name: json.dumps(value) for name, value in plain.items()}),
        }
    )


def decode(kind: type[Message], content: RecordDict) -> Message:
    """Rebuild a ``kind``. Raises WireError naming the first field that is unknown, missing or unfit."""
    kinds = set(content.array_records), set(content.config_records)
    if kinds != ({"arrays"}, {"fields"}) or len(content) != RECORDS:
        raise WireError(f"records: expected arrays and fields, received {sorted(map(str, content))}")
    found: dict[str, Any] = dict(content.array_records["arrays"].items())
    found |= dict(content.config_records["fields"].items())
    message = _build(kind, found, prefix="")
    if found:
        raise WireError(f"{_plain_name(min(found))}: not a field of {kind.__name__}")
    return message


def payload_bytes(content: RecordDict) -> int:
    """Bytes that a record's values occupy on the wire, headers not counted."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    texts = sum(
        len(key) + len(str(value))
        for record in content.config_records.values()
        for key, value in record.items()
    )
    return arrays + texts


def _plain_name(name: str) -> str:
    """A received name as it may stand in a one-line message."""
    return name if re.fullmatch(r"[A-Za-z_][\w.]{0,99}", name) else f"fields: {name[:40]!r}"


def _flatten(message: object, prefix: str = "") -> tuple[dict[str, np.ndarray], dict[str, object]]:
    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, object] = {}
    for field in fields(cast(Any, message)):
        value = getattr(message, field.name)
        if is_dataclass(value):
            inner_arrays, inner_plain = _flatten(value, f"{prefix}{field.name}.")
            arrays |= inner_arrays
            plain |= inner_plain
        elif isinstance(value, np.ndarray):
            arrays[prefix + field.name] = value
        else:
            plain[prefix + field.name] = value
    return arrays, plain


def _build(kind: type[Message], found: dict[str, Any], prefix: str) -> Message:
    """Take the fields of ``kind`` out of ``found``."""
    hints = get_type_hints(kind)
    values: dict[str, object] = {}
    for field in fields(cast(Any, kind)):
        name, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            values[field.name] = _build(cast(type[object], hint), found, name + ".")
        elif name not in found:
            raise WireError(f"{name}: missing")
        else:
            values[field.name] = _value(name, hint, found.pop(name))
    return kind(**values)


def _value(name: str, hint: Any, raw: object) -> object:
    if isinstance(raw, Array) is not (hint not in PLAIN):
        raise WireError(f"{name}: needs {'a plain value' if hint in PLAIN else 'an array'}")
    if isinstance(raw, Array):
        return _array(name, raw)
    try:
        value = json.loads(str(raw))
    except (ValueError, RecursionError):
        raise WireError(f"{name}: not JSON") from None
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise WireError(f"{name}: needs a list of strings")
        return tuple(value)
    if hint is float and type(value) is int:
        if abs(value) > sys.float_info.max:
            raise WireError(f"{name}: too large a number")
        value = float(value)
    if type(value) is not hint:
        raise WireError(f"{name}: needs {hint.__name__}, got {type(value).__name__}")
    return value


def _array(name: str, raw: Array) -> np.ndarray:
    try:
        return raw.numpy()
    except Exception as error:  # any error that a mutated buffer causes is the sender's fault
        raise WireError(f"{name}: unreadable array ({type(error).__name__})") from error
