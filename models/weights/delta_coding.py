"""How the change of one tensor becomes bytes that compress well, and back; numpy only.

Every number of a change becomes an unsigned integer that is small if the change is small: float bit patterns are
mapped to integers of the same order, subtracted, and their sign is moved to the lowest bit ("zigzag"). Then all first
bytes are put together, all second bytes, and so on ("byte-shuffle"), because the high bytes are alike.

Bounds on ``restored - new`` per value, with ``d = new - base``:

=======  ===========================================================================================================
exact    0, bit for bit
fp16     ``2**-11 * |d| + 2**-25``, plus the rounding of the sum to the tensor's dtype
int8     half a step, ``max|d| / 254`` of the output channel (first dimension), plus the same rounding; symmetric
=======  ===========================================================================================================

A tensor that a lossy coding cannot hold within its bound (infinities, NaN, changes beyond fp16) travels exactly. One
int8 scale per output channel rather than per tensor: channels differ in range, and four bytes per channel are
negligible beside the channel (``benchmarks/fleet/downlink.py`` shows both).
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
UpdatePrecision = Literal["exact", "fp16", "int8"]

CODINGS = ("exact", "fp16", "int8")
DTYPES = {
    name: np.dtype(name).newbyteorder("<").str
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")
}
"""What updates can carry, little-endian."""
SMALL = 1024
"""Tensors of fewer values are not worth rounding."""
_LEVELS = 127
_LEAST_SCALE = float(np.finfo(np.float32).tiny)
_LARGEST_HALF = float(np.finfo(np.float16).max)
_LARGEST_SINGLE = float(np.finfo(np.float32).max)


def same_bits(one: Array, other: Array) -> bool:
    """Equal bit for bit; NaN is equal to itself and 0.0 is not -0.0."""
    return bool(np.array_equal(_bits(one), _bits(other)))


def coded(new: Array, base: Array | None, precision: UpdatePrecision) -> tuple[str, bytes, Array]:
    """(the coding taken, bytes of the change, the tensor that ``restored`` makes of them, a copy)."""
    roundable = new.dtype.name in ("float32", "float64") and new.ndim >= 2 and new.size >= SMALL
    if precision != "exact" and roundable:
        change = _change(new, base)
        largest = float(np.abs(change).max())
        if largest <= (_LARGEST_HALF if precision == "fp16" else _LARGEST_SINGLE):  # false for NaN
            planes, rounded = _halved(change) if precision == "fp16" else _stepped(change)
            reached = _moved(base, rounded, new.dtype)
            if np.isfinite(reached).all():
                return precision, planes, reached
    return "exact", _planes(_zigzag(_ordered(new) - _ordered_or_zero(base, new.dtype))), new.copy()


def body_size(dtype: np.dtype[Any], shape: tuple[int, ...], coding: str) -> int:
    """Bytes that ``coded`` makes of such a tensor."""
    values = prod(shape)
    if coding == "int8":
        return 4 * shape[0] + values
    return values * (2 if coding == "fp16" else dtype.itemsize)


def restored(
    planes: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], coding: str, base: Array | None
) -> Array:
    """The tensor behind ``body_size`` bytes. Raises ValueError if they do not give finite numbers although they
    should."""
    if coding == "exact":
        whole = _unzigzag(_unplaned(planes, dtype.itemsize)) + _ordered_or_zero(base, dtype)
        return _disordered(whole, dtype).reshape(shape)
    if coding == "fp16":
        half = _disordered(_unzigzag(_unplaned(planes, 2)), np.dtype("<f2")).reshape(shape)
        change = half.astype(np.float64)
    else:
        rows = (shape[0], *[1] * (len(shape) - 1))
        scale = np.frombuffer(planes, "<f4", shape[0]).astype(np.float64).reshape(rows)
        change = np.frombuffer(planes, np.int8, offset=4 * shape[0]).reshape(shape) * scale
    if not np.isfinite(change).all():
        raise ValueError("a rounded change is not finite")
    return _moved(base, change, dtype)


def _halved(change: npt.NDArray[np.float64]) -> tuple[bytes, npt.NDArray[np.float64]]:
    half = change.astype("<f2")
    return _planes(_zigzag(_ordered(half))), half.astype(np.float64)


def _stepped(change: npt.NDArray[np.float64]) -> tuple[bytes, npt.NDArray[np.float64]]:
    scale = _scales(change)
    steps = np.divide(change, scale, out=np.zeros_like(change), where=scale > 0)
    whole = np.clip(np.rint(steps), -_LEVELS, _LEVELS).astype(np.int8)
    return scale.astype("<f4").tobytes() + whole.tobytes(), whole * scale


def _change(new: Array, base: Array | None) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        return new.astype(np.float64) - (0.0 if base is None else base.astype(np.float64))


def _moved(base: Array | None, change: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """``base`` + ``change``, added in float64 and rounded once, so that all machines agree."""
    with np.errstate(invalid="ignore", over="ignore"):
        return (change if base is None else base.astype(np.float64) + change).astype(dtype)


def _scales(change: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One step size per output channel, rounded to float32 as it travels; 0 if nothing (or next to nothing) changed."""
    largest = np.abs(change).max(axis=tuple(range(1, change.ndim)), keepdims=True)
    scale: npt.NDArray[np.float64] = (largest / _LEVELS).astype(np.float32).astype(np.float64)
    return np.where(scale < _LEAST_SCALE, 0.0, scale)


def _bits(value: Array) -> Array:
    return np.ascontiguousarray(value).reshape(-1).view(f"<i{value.dtype.itemsize}")


def _ordered(value: Array) -> Array:
    """Signed integers (n,) of the same width, in the order of the values (for floats: of the number line)."""
    bits = _bits(value)
    mask: Array = _magnitude_if_negative(bits) if value.dtype.kind == "f" else np.zeros(1, bits.dtype)
    whole: Array = bits ^ mask
    return whole


def _disordered(whole: Array, dtype: np.dtype[Any]) -> Array:
    bits = whole ^ _magnitude_if_negative(whole) if dtype.kind == "f" else whole
    return np.ascontiguousarray(bits).view(dtype)


def _magnitude_if_negative(bits: Array) -> Array:
    """All bits but the sign if the sign is set, else none; an exclusive or with it is its own inverse."""
    return (bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max


def _ordered_or_zero(base: Array | None, dtype: np.dtype[Any]) -> Array:
    return np.zeros(1, f"<i{dtype.itemsize}") if base is None else _ordered(base)


def _zigzag(whole: Array) -> Array:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ...; integers wrap around, which loses nothing."""
    return (whole << 1) ^ (whole >> (8 * whole.itemsize - 1))


def _unzigzag(zigzag: Array) -> Array:
    halves: Array = (zigzag.view(f"<u{zigzag.itemsize}") >> 1).view(zigzag.dtype)
    whole: Array = halves ^ -(zigzag & 1)
    return whole


def _planes(whole: Array) -> bytes:
    return np.ascontiguousarray(whole.view(np.uint8).reshape(len(whole), whole.itemsize).T).tobytes()


def _unplaned(planes: bytes, width: int) -> Array:
    columns = np.frombuffer(planes, np.uint8).reshape(width, len(planes) // width)
    return np.ascontiguousarray(columns.T).reshape(-1).view(f"<i{width}")
