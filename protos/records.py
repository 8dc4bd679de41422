"""The codec between the messages of ``messages.py`` and Flower's records.

One rule for all messages: array fields go into an ArrayRecord named ``arrays``, everything else into one
ConfigRecord named ``fields`` (JSON per field). Decoding demands exactly the declared fields (but optional ones may be
missing), so an extra field, say a label that a device tries to send along, is refused by name. A device's upload
travels in fewer bytes, as one field of ``fields`` (``packed_upload.py``); one by the rule for all is read, too.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import Field, fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedstill.protos.messages import PrototypeRequest, PrototypeUpload, WireError
from fedstill.protos.packed_upload import pack_upload, unpack_upload

Message = TypeVar("Message")

RECORDS = 2
PACKED = "upload"
PLAIN = (str, int, float, bool, tuple[str, ...])


def encode(message: object, asked: object = None) -> RecordDict:
    """The records of a message dataclass.

    Args:
        asked: the request that this answers; an upload may be packed as that says.
    """
    if isinstance(message, PrototypeUpload):
        coarse = isinstance(asked, PrototypeRequest) and asked.coarse
        return RecordDict({"fields": ConfigRecord({PACKED: pack_upload(message, coarse)})})
    return plain_records(message)


def plain_records(message: object) -> RecordDict:
    """The records of a message by the rule for all, an upload's too."""
    arrays, plain = _flatten(message)
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
            "fields": ConfigRecord({name: json.dumps(value) for name, value in plain.items()}),
        }
    )


def decode(kind: type[Message], content: RecordDict, asked: object = None) -> Message:
    """Rebuild a ``kind``. Raises WireError naming the first field that is unknown, missing or unfit.

    Args:
        asked: the request that this answers; an upload cannot be read without it.
    """
    if kind is PrototypeUpload and set(content) == set(content.config_records) == {"fields"}:
        return cast(Message, _upload(content.config_records["fields"], asked))
    kinds = set(content.array_records), set(content.config_records)
    if kinds != ({"arrays"}, {"fields"}) or len(content) != RECORDS:
        raise WireError(f"records: expected arrays and fields, received {sorted(map(str, content))}")
    found: dict[str, Any] = dict(content.array_records["arrays"].items())
    found |= dict(content.config_records["fields"].items())
    message = _build(kind, found, prefix="")
    _require_nothing_else(kind, found)
    return message


def payload_bytes(content: RecordDict) -> int:
    """Bytes of a message's content as Flower sends it: every record and array once, with their headers and ids.

    The message around it, which has the sender, the receiver and the time, is not counted.
    """
    sizes: dict[str, int] = {}
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        identity, part = waiting.pop()
        sizes[identity] = len(part.deflate())
        waiting += (part.children or {}).items()
    return sum(sizes.values())


def _upload(fields_: ConfigRecord, asked: object) -> PrototypeUpload:
    if not isinstance(asked, PrototypeRequest):
        raise TypeError("an upload is read with the request that it answers")
    found = dict(fields_.items())
    data = found.pop(PACKED, None)
    if data is None:
        raise WireError(f"{PACKED}: missing")
    if not isinstance(data, bytes):
        raise WireError(f"{PACKED}: needs bytes, got {type(data).__name__}")
    _require_nothing_else(PrototypeUpload, found)
    return unpack_upload(data, asked)


def _require_nothing_else(kind: type, left: dict[str, Any]) -> None:
    if left:
        raise WireError(f"{_plain_name(min(left))}: not a field of {kind.__name__}")


def _plain_name(name: str) -> str:
    """A received name as it may stand in a one-line message."""
    return name if re.fullmatch(r"[A-Za-z_][\w.]{0,99}", name) else f"fields: {name[:40]!r}"


def _flatten(message: object, prefix: str = "") -> tuple[dict[str, np.ndarray], dict[str, object]]:
    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, object] = {}
    for field in fields(cast(Any, message)):
        value = getattr(message, field.name)
        if field.metadata.get("new") and _is_default(field, value):
            continue
        if is_dataclass(value):
            inner_arrays, inner_plain = _flatten(value, f"{prefix}{field.name}.")
            arrays |= inner_arrays
            plain |= inner_plain
        elif isinstance(value, np.ndarray):
            arrays[prefix + field.name] = value
        else:
            plain[prefix + field.name] = value
    return arrays, plain


def _is_default(field: Field[Any], value: object) -> bool:
    return not len(value) if isinstance(value, np.ndarray) else bool(value == field.default)


def _build(kind: type[Message], found: dict[str, Any], prefix: str) -> Message:
    """Take the fields of ``kind`` out of ``found``."""
    hints = get_type_hints(kind)
    values: dict[str, object] = {}
    for field in fields(cast(Any, kind)):
        name, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            values[field.name] = _build(cast(type[object], hint), found, name + ".")
        elif name not in found:
            if field.metadata.get("optional"):
                continue  # the default
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
