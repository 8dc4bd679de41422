"""Student updates as bytes: only the changes against the weights that a device already has.

The downlink dominates the traffic of selective distillation, so an update names only the tensors that changed, rounds
them to the requested precision and packs the result. It needs numpy and the standard library only, because a device
without torch unpacks updates, too. An update is always made against the state that the *device* has, which
``Update.state`` is after it: rounding errors of successive updates therefore never add up.

    payload = MAGIC | format (1 byte) | SHA-256 of the rest (32) | length of the header (4) | header | body

Header (JSON) and body (planes of bytes, see ``delta_coding``) are deflate streams. Nothing in a payload is trusted:
sizes are bounded before memory is taken, and any damage is a ValueError that starts with the name of the field.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedstill.models.weights.delta_coding import (
    CODINGS,
    DTYPES,
    UpdatePrecision,
    body_size,
    coded,
    restored,
    same_bits,
)

Array = npt.NDArray[Any]
State = Mapping[str, Array]

MAGIC = b"FSDU"
FORMAT = 1
MOST_BYTES = 2**30
"""The largest state that is accepted unless the caller says otherwise."""
MOST_HEADER_BYTES = 2**22
MOST_DIMENSIONS = 8
_PREFIX = struct.Struct("<4sB32sI")


@dataclass(frozen=True)
class Update:
    """An update and its result: ``state`` is exactly the state that ``apply_update`` makes of ``payload``."""

    payload: bytes
    state: dict[str, Array]


@dataclass(frozen=True)
class _Entry:
    """One tensor of an update."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    coding: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def encode_update(new: State, base: State | None, precision: UpdatePrecision) -> Update:
    """The update that takes a device from ``base`` (None: from nothing) to ``new``.

    With ``exact`` the device ends with ``new`` bit for bit. With ``fp16`` and ``int8`` the change of every float
    tensor of two or more dimensions and at least ``delta_coding.SMALL`` values is rounded, within the bounds stated
    in ``delta_coding``; all others, so biases, everything of BatchNorm, integers and values that are not finite, travel
    exactly. Nothing in the result shares memory with ``new``.

    Raises:
        ValueError: ``base`` has other tensors than ``new``, or a tensor has a dtype that no update can carry.
    """
    if base is not None:
        _require_same_tensors(new, base)
    entries: list[list[object]] = []
    body: list[bytes] = []
    state: dict[str, Array] = {}
    for name in sorted(new):
        value = _plain(name, new[name])
        old = None if base is None else _plain(name, base[name])
        if old is not None and same_bits(value, old):
            state[name] = old
            continue
        coding, planes, state[name] = coded(value, old, precision)
        entries.append([name, value.dtype.name, list(value.shape), coding])
        body.append(planes)
    header = {"kind": "full" if base is None else "delta", "tensors": entries}
    return Update(_sealed(zlib.compress(json.dumps(header).encode(), 9), _deflated(body)), state)


def apply_update(payload: bytes, base: State | None, most_bytes: int = MOST_BYTES) -> dict[str, Array]:
    """The state that a payload leads to from ``base``, which has to be the one that it was made against.

    This is not checked here; compare the result's ``content_hash``.

    Args:
        base: None for a full update. Its arrays are not changed; unchanged ones are shared with the result.
        most_bytes: a full update that declares more than this is refused before anything is unpacked.

    Raises:
        ValueError: the payload is damaged, too large or does not fit ``base``; starts with the field's name.
    """
    packed_header, packed_body = _opened(payload)
    kind, entries = _header(_inflated("header", packed_header, MOST_HEADER_BYTES))
    if (kind == "full") is not (base is None):
        raise ValueError(f"kind: a {kind} update {'needs no' if kind == 'full' else 'needs a'} base")
    _require_fit(entries, base, most_bytes)
    sizes = [body_size(entry.dtype, entry.shape, entry.coding) for entry in entries]
    body = _inflated("body", packed_body, sum(sizes))
    if len(body) != sum(sizes):
        raise ValueError(f"body: {len(body)} bytes where the header means {sum(sizes)}")
    state = dict(base or {})
    start = 0
    for entry, size in zip(entries, sizes, strict=True):
        old = None if base is None else base[entry.name]
        planes = body[start : start + size]
        try:
            state[entry.name] = restored(planes, entry.dtype, entry.shape, entry.coding, old)
        except ValueError as error:
            raise ValueError(f"body.{entry.name}: {error}") from error
        start += size
    return {name: state[name] for name in sorted(state)}


def content_hash(state: State, about: Iterable[str] = ()) -> str:
    """SHA-256 (64 hex digits) over names, dtypes, shapes and bytes of all tensors, whatever their order.

    Args:
        about: texts that give the content its meaning (a specification, class names in their order).
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = np.asarray(state[name])
        described = json.dumps([name, value.dtype.name, list(value.shape)])
        digest.update(described.encode() + b"\n")
        digest.update(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False)).data)
    digest.update(json.dumps(["about", *about]).encode())
    return digest.hexdigest()


def _plain(name: str, value: Array) -> Array:
    """A little-endian, contiguous array of a dtype that updates can carry."""
    if value.dtype.name not in DTYPES:
        raise ValueError(f"{name}: no update can carry {value.dtype.name}")
    shaped: Array = np.ascontiguousarray(value, DTYPES[value.dtype.name]).reshape(value.shape)
    return shaped


def _require_same_tensors(new: State, base: State) -> None:
    for name in sorted(new.keys() ^ base.keys()):
        raise ValueError(f"{name}: is in only one of the new and the base state")
    for name, value in new.items():
        if (value.dtype, value.shape) != (base[name].dtype, base[name].shape):
            raise ValueError(
                f"{name}: {value.dtype} {value.shape}, but the base has {base[name].dtype} {base[name].shape}"
            )


def _sealed(header: bytes, body: bytes) -> bytes:
    rest = struct.pack("<I", len(header)) + header + body
    return MAGIC + bytes([FORMAT]) + hashlib.sha256(rest).digest() + rest


def _opened(payload: bytes) -> tuple[bytes, bytes]:
    """(header, body), both still deflated."""
    if len(payload) < _PREFIX.size:
        raise ValueError(f"payload: {len(payload)} bytes are too few")
    magic, form, digest, length = _PREFIX.unpack_from(payload)
    if magic != MAGIC:
        raise ValueError("magic: this is no student update")
    if form != FORMAT:
        raise ValueError(f"format: {form}, this fedstill reads {FORMAT}")
    if hashlib.sha256(payload[_PREFIX.size - 4 :]).digest() != digest:
        raise ValueError("digest: the payload was damaged on its way")
    if length > len(payload) - _PREFIX.size:
        raise ValueError(f"header: {length} bytes, more than there are")
    return payload[_PREFIX.size : _PREFIX.size + length], payload[_PREFIX.size + length :]


def _deflated(parts: Iterable[bytes]) -> bytes:
    """A body. Run lengths and Huffman codes only: planes hold few repeated strings, and a search for them takes
    long."""
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return b"".join([*(packer.compress(part) for part in parts), packer.flush()])


def _inflated(field: str, packed: bytes, most_bytes: int) -> bytes:
    """Never takes more memory than ``most_bytes``, whatever the stream holds."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(packed, most_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"{field}: {error}") from error
    if len(found) > most_bytes:
        raise ValueError(f"{field}: unpacks to more than {most_bytes} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"{field}: {'something follows' if unpacker.eof else 'cut short'}")
    return found


def _header(text: bytes) -> tuple[Literal["full", "delta"], list[_Entry]]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("header: not JSON") from None
    if not isinstance(header, dict) or header.keys() != {"kind", "tensors"}:
        raise ValueError("header: needs kind and tensors, and nothing else")
    kind = header["kind"]
    if kind not in ("full", "delta"):
        raise ValueError("kind: neither full nor delta")
    if not isinstance(header["tensors"], list):
        raise ValueError("tensors: needs a list")
    entries = list(_entries(header["tensors"]))
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("tensors: one name twice")
    return kind, entries


def _entries(rows: list[object]) -> Iterator[_Entry]:
    for index, row in enumerate(rows):
        where = f"tensors[{index}]"
        if not isinstance(row, list) or len(row) != 4:
            raise ValueError(f"{where}: needs name, dtype, shape and coding")
        name, dtype, shape, coding = row
        if not isinstance(name, str):
            raise ValueError(f"{where}.name: needs a text")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{where}.dtype: no update can carry it")
        if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"{where}.shape: needs a list of at most {MOST_DIMENSIONS} sizes")
        if not all(type(size) is int and 0 <= size <= 2**40 for size in shape):
            raise ValueError(f"{where}.shape: needs sizes from 0 to 2**40")
        if not isinstance(coding, str) or coding not in CODINGS:
            raise ValueError(f"{where}.coding: is not one of {', '.join(CODINGS)}")
        if coding != "exact" and (not dtype.startswith("float") or len(shape) < 2 or 0 in shape):
            raise ValueError(f"{where}.coding: {coding} is for float matrices")
        yield _Entry(name, np.dtype(DTYPES[dtype]), tuple(shape), coding)


def _require_fit(entries: list[_Entry], base: State | None, most_bytes: int) -> None:
    """Declared sizes are those of the base or, without one, no more than was allowed."""
    if base is None:
        if sum(entry.nbytes for entry in entries) > most_bytes:
            raise ValueError(f"tensors: more than the {most_bytes} bytes that are accepted")
        return
    for index, entry in enumerate(entries):
        if entry.name not in base:
            raise ValueError(f"tensors[{index}].name: the base has no such tensor")
        old = base[entry.name]
        if (entry.dtype, entry.shape) != (old.dtype, old.shape):
            raise ValueError(f"tensors[{index}].shape: the base has {old.dtype} {old.shape}")
