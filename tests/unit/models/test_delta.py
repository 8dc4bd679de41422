"""Guards student updates: exact ones are exact, rounded ones stay within their bound, damage is always a ValueError."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedstill.models.weights.delta import FORMAT, MAGIC, apply_update, content_hash, encode_update
from fedstill.models.weights.delta_coding import DTYPES, SMALL, UpdatePrecision

State = dict[str, np.ndarray]
PRECISIONS: tuple[UpdatePrecision, ...] = ("exact", "fp16", "int8")
ROUNDED: tuple[UpdatePrecision, ...] = ("fp16", "int8")
HEAD = 37
"""Magic, format and digest."""


def student(seed: int, spread: float = 0.05) -> State:
    """What a student's state dict holds: convolutions, BatchNorm with its buffers, a counter, a small classifier."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * spread).astype(np.float32)

    return {
        "conv.weight": normal(24, 16, 3, 3),
        "bn.weight": normal(24),
        "bn.running_mean": normal(24),
        "bn.running_var": np.abs(normal(24)),
        "bn.num_batches_tracked": np.array(seed, np.int64),
        "head.weight": normal(6, 24),
        "nothing": np.zeros((0, 7), np.float32),
    }


def trained(state: Mapping[str, np.ndarray], seed: int, step: float = 0.002) -> State:
    moved = student(seed, step)
    return {name: (value + moved[name]).astype(value.dtype) for name, value in state.items()}


def identical(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("has_base", [False, True])
def test_a_device_ends_with_the_state_that_the_encoder_promised(
    precision: UpdatePrecision, has_base: bool
) -> None:
    base = student(1) if has_base else None
    new = trained(student(1), 2)
    update = encode_update(new, base, precision)
    assert identical(apply_update(update.payload, base), update.state)
    assert identical(update.state, new) == (precision == "exact")


@pytest.mark.parametrize("precision", ROUNDED)
def test_what_is_small_or_whole_or_of_batch_norm_travels_exactly(precision: UpdatePrecision) -> None:
    new = trained(student(1), 2)
    state = encode_update(new, student(1), precision).state
    different = {name for name in new if not np.array_equal(state[name], new[name])}
    assert different == {"conv.weight"}
    assert new["conv.weight"].size >= SMALL > new["head.weight"].size


def test_rounded_updates_are_smaller() -> None:
    base, new = student(1), trained(student(1), 2)
    exact, half, whole = (len(encode_update(new, base, precision).payload) for precision in PRECISIONS)
    assert whole < half < exact < sum(value.nbytes for value in new.values())


def test_only_changed_tensors_travel() -> None:
    base = student(1)
    new = {**base, "bn.running_mean": base["bn.running_mean"] + 1}
    payload = encode_update(new, base, "exact").payload
    assert len(payload) < len(encode_update(new, None, "exact").payload) / 20
    assert identical(apply_update(payload, base), new)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_update_to_the_same_state_is_near_empty(precision: UpdatePrecision) -> None:
    base = student(1)
    base["conv.weight"][0, 0, 0] = [np.nan, -0.0, 0.0]
    update = encode_update(base, base, precision)
    assert len(update.payload) < 100
    assert identical(apply_update(update.payload, base), base)


def test_the_result_shares_no_memory_with_the_weights_in_training() -> None:
    new = student(1)
    update = encode_update(new, None, "exact")
    promised = content_hash(update.state)
    for value in new.values():
        value[...] = 3
    assert content_hash(update.state) == promised


@pytest.mark.parametrize("precision", ROUNDED)
def test_errors_of_successive_updates_do_not_add_up(precision: UpdatePrecision) -> None:
    """Every update is made against what the device has, so the last one alone decides how far off it is."""
    new, held = student(1), None
    errors = []
    for turn in range(30):
        new = trained(new, turn)
        held = encode_update(new, held, precision).state
        errors.append(np.abs(held["conv.weight"] - new["conv.weight"]).max())
    assert max(errors[20:]) < 1.5 * max(errors[1:10])
    assert max(errors[1:]) < errors[0]  # the first one carried whole weights


finite = st.floats(-(2.0**99), 2.0**99, width=32)
any_float = st.floats(width=32)


def matrices(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    """float32 (rows, 64) with at least ``SMALL`` values, so that it is rounded; mostly one value, a few others."""
    rows = st.integers(SMALL // 64, SMALL // 64 + 3)
    return rows.flatmap(lambda n: arrays.arrays(np.float32, (n, 64), elements=elements, fill=elements))


def like(state: np.ndarray, draw: st.DrawFn, elements: st.SearchStrategy[float]) -> np.ndarray:
    return draw(arrays.arrays(np.float32, state.shape, elements=elements, fill=elements))


@st.composite
def pairs(draw: st.DrawFn, elements: st.SearchStrategy[float]) -> tuple[np.ndarray, np.ndarray | None]:
    new = draw(matrices(elements))
    return new, like(new, draw, elements) if draw(st.booleans()) else None


@settings(deadline=None)
@given(st.data(), st.sampled_from(sorted(DTYPES)))
def test_exact_is_bit_exact_for_every_dtype_and_shape(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    new, base = (data.draw(arrays.arrays(np.dtype(dtype), shape)) for _ in range(2))
    for held in (None, {"x": base}):
        update = encode_update({"x": new}, held, "exact")
        assert identical(apply_update(update.payload, held), {"x": new})


@settings(deadline=None)
@given(pairs(any_float), st.sampled_from(PRECISIONS))
def test_no_value_is_too_strange_for_any_precision(
    pair: tuple[np.ndarray, np.ndarray | None], precision: UpdatePrecision
) -> None:
    new, base = pair
    held = None if base is None else {"x": base}
    update = encode_update({"x": new}, held, precision)
    assert identical(apply_update(update.payload, held), update.state)
    assert np.array_equal(np.isfinite(update.state["x"]), np.isfinite(new))


@settings(deadline=None)
@given(pairs(finite))
def test_fp16_stays_within_its_bound(pair: tuple[np.ndarray, np.ndarray | None]) -> None:
    new, base = (None if one is None else one.astype(np.float64) for one in pair)
    state = reached(pair, "fp16")
    change = np.abs(new - (0 if base is None else base))
    assert (np.abs(state - new) <= 2.0**-11 * change + 2.0**-25 + rounding(state)).all()


@settings(deadline=None)
@given(pairs(finite))
def test_int8_errs_by_half_a_step_of_its_channel_at_most(pair: tuple[np.ndarray, np.ndarray | None]) -> None:
    new, base = (None if one is None else one.astype(np.float64) for one in pair)
    state = reached(pair, "int8")
    change = np.abs(new - (0 if base is None else base)).max(axis=1, keepdims=True)
    assert (np.abs(state - new) <= change / 254 * (1 + 1e-6) + 1e-35 + rounding(state)).all()


def reached(pair: tuple[np.ndarray, np.ndarray | None], precision: UpdatePrecision) -> np.ndarray:
    new, base = pair
    return (
        encode_update({"x": new}, None if base is None else {"x": base}, precision)
        .state["x"]
        .astype(np.float64)
    )


def rounding(state: np.ndarray) -> np.ndarray:
    """Half a unit in the last place of float32."""
    return 2.0**-24 * np.abs(state) + 2.0**-149


def test_golden_bytes_of_a_small_update() -> None:
    """The format is a promise: a device of today reads what a cloud of tomorrow sends."""
    update = encode_update({"a": np.array([1.0, -2.0], np.float32)}, {"a": np.zeros(2, np.float32)}, "exact")
    rest = update.payload[HEAD:]
    (length,) = struct.unpack("<I", rest[:4])
    assert update.payload[:5] == b"FSDU\x01"
    assert update.payload[5:HEAD] == hashlib.sha256(rest).digest()
    assert json.loads(zlib.decompress(rest[4 : 4 + length])) == {
        "kind": "delta", "tensors": [["a", "float32", [2], "exact"]]
    }  # fmt: skip
    # 1.0 is 0x3f800000, doubled 0x7f000000; -2.0 is 0x40000000 below zero, doubled minus one: 0x80000001 (from ~)
    assert zlib.decompress(rest[4 + length :]).hex() == "0001000000007f80"


def test_the_hash_is_of_names_dtypes_shapes_and_bytes_in_any_order() -> None:
    state = student(1)
    known = content_hash(state)
    assert len(known) == 64
    assert content_hash(dict(reversed(state.items()))) == known
    weight = state["conv.weight"]
    others = [
        {**state, "conv.weight": weight.reshape(16, 24, 3, 3)},
        {**state, "conv.weight": weight.view(np.int32)},
        {**state, "conv.weight": weight + np.float32(1e-7)},
        {
            **{name: value for name, value in state.items() if name != "bn.weight"},
            "other": state["bn.weight"],
        },
    ]
    hashes = {known, content_hash(state, ["spec"]), content_hash(state, ["sp", "ec"])}
    assert len(hashes | {content_hash(other) for other in others}) == 7
    assert content_hash({"a": weight.T}) == content_hash({"a": np.ascontiguousarray(weight.T)})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"conv.weight": None}, "conv.weight: is in only one"),
        ({"more": np.zeros(1)}, "more: is in only one"),
        ({"bn.weight": np.zeros(25, np.float32)}, r"bn.weight: float32 \(25,\), but"),
        ({"bn.weight": np.zeros(24)}, "bn.weight: float64"),
    ],
)
def test_a_base_with_other_tensors_is_refused(change: dict[str, np.ndarray | None], text: str) -> None:
    new = {name: value for name, value in (student(1) | change).items() if value is not None}
    with pytest.raises(ValueError, match=f"^{text}"):
        encode_update(new, student(1), "exact")


def test_a_dtype_without_a_coding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^x: no update can carry complex64"):
        encode_update({"x": np.zeros(3, np.complex64)}, None, "exact")


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(PRECISIONS), st.booleans())
def test_a_mutated_payload_is_refused_or_means_the_same(
    data: st.DataObject, precision: UpdatePrecision, has_base: bool
) -> None:
    base = student(1) if has_base else None
    update = encode_update(trained(student(1), 2), base, precision)
    blob = bytearray(update.payload)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(blob[: data.draw(st.integers(0, len(blob)) | st.just(len(blob)))])
    found, refusal = attempt(cut + data.draw(st.binary(max_size=3)), base)
    assert "\n" not in refusal
    assert found is None or identical(found, update.state)


def attempt(payload: bytes, base: State | None) -> tuple[State | None, str]:
    """The state, or None and why it was refused; any other error fails the test."""
    try:
        return apply_update(payload, base), ""
    except ValueError as error:
        return None, str(error)


def sealed(header: object, body: bytes, *, raw: bytes | None = None) -> bytes:
    """A payload with a right digest, whatever its content."""
    packed = zlib.compress(json.dumps(header).encode() if raw is None else raw)
    rest = struct.pack("<I", len(packed)) + packed + zlib.compress(body)
    return MAGIC + bytes([FORMAT]) + hashlib.sha256(rest).digest() + rest


def full(*row: object, body: bytes = b"") -> bytes:
    return sealed({"kind": "full", "tensors": [list(row)]}, body)


def delta(*row: object, body: bytes = b"") -> bytes:
    return sealed({"kind": "delta", "tensors": [list(row)]}, body)


BASE = {"x": np.zeros((2, 3), np.float32)}
NAN_SCALES = np.full(2, np.nan, "<f4").tobytes() + bytes(6)


@pytest.mark.parametrize(
    ("payload", "base", "text"),
    [
        (b"", None, "payload: 0 bytes"),
        (b"JSON" + bytes(60), None, "magic: "),
        (MAGIC + b"\x02" + bytes(60), None, "format: 2, this fedstill reads 1"),
        (MAGIC + b"\x01" + bytes(60), None, "digest: "),
        (sealed({}, b""), None, "header: needs kind"),
        (sealed([], b""), None, "header: needs kind"),
        (sealed(None, b"", raw=b"{"), None, "header: not JSON"),
        (sealed(None, b"", raw=b"[" * 200_000), None, "header: not JSON"),
        (sealed(None, b"", raw=b" " * 5_000_000), None, "header: unpacks to more than"),
        (sealed({"kind": "part", "tensors": []}, b""), None, "kind: neither"),
        (sealed({"kind": [], "tensors": []}, b""), None, "kind: neither"),
        (sealed({"kind": "full", "tensors": {}}, b""), None, "tensors: needs a list"),
        (full(1, 2), None, r"tensors\[0\]: needs name"),
        (full(1, "float32", [1], "exact"), None, r"tensors\[0\].name: "),
        (full("x", "object", [1], "exact"), None, r"tensors\[0\].dtype: "),
        (full("x", ["float32"], [1], "exact"), None, r"tensors\[0\].dtype: "),
        (full("x", "float32", 1, "exact"), None, r"tensors\[0\].shape: "),
        (full("x", "float32", [True], "exact"), None, r"tensors\[0\].shape: "),
        (full("x", "float32", [-1], "exact"), None, r"tensors\[0\].shape: "),
        (full("x", "float32", [1.5], "exact"), None, r"tensors\[0\].shape: "),
        (full("x", "float32", [1] * 9, "exact"), None, r"tensors\[0\].shape: "),
        (full("x", "float32", [10**30, 0], "exact"), None, r"tensors\[0\].shape: "),
        (full("x", "float32", [1], "zip"), None, r"tensors\[0\].coding: "),
        (full("x", "int64", [2, 2], "fp16"), None, r"tensors\[0\].coding: fp16 is for float"),
        (full("x", "float32", [2], "int8"), None, r"tensors\[0\].coding: int8 is for float"),
        (full("x", "float32", [2**39, 8], "exact"), None, "tensors: more than the 1073741824 bytes"),
        (full("x", "float32", [2], "exact", body=bytes(7)), None, "body: 7 bytes where"),
        (full("x", "float32", [2], "exact", body=bytes(10**7)), None, "body: unpacks to more than 8"),
        (full("x", "float32", [2, 3], "int8", body=NAN_SCALES), None, r"body.x: .* not finite"),
        (full("x", "float32", [2, 3], "fp16", body=b"\xff" * 12), None, r"body.x: .* not finite"),
        (full("x", "float32", [0], "exact"), BASE, "kind: a full update needs no base"),
        (delta("x", "float32", [2, 3], "exact"), None, "kind: a delta update needs a base"),
        (delta("y", "float32", [2, 3], "exact"), BASE, r"tensors\[0\].name: the base has no"),
        (delta("x", "float32", [3, 2], "exact"), BASE, r"tensors\[0\].shape: the base has float32 \(2, 3\)"),
        (delta("x", "float64", [2, 3], "exact"), BASE, r"tensors\[0\].shape: the base has"),
        (
            sealed({"kind": "delta", "tensors": [["x", "float32", [2, 3], "exact"]] * 2}, bytes(48)),
            BASE,
            "tensors: one name twice",
        ),
    ],
)
def test_every_field_is_checked_and_named(payload: bytes, base: State | None, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}") as caught:
        apply_update(payload, base)
    assert "\n" not in str(caught.value)


def test_a_bomb_takes_no_memory() -> None:
    """Fifty megabytes of zeros pack to a few kilobytes; what unpacks beyond the declared size is never made."""
    import tracemalloc

    bomb = full("x", "float32", [4], "exact", body=bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^body: unpacks"):
            apply_update(bomb, None)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_caller_says_how_large_a_student_may_be() -> None:
    payload = encode_update(student(1), None, "exact").payload
    with pytest.raises(ValueError, match=r"^tensors: more than the 1000 bytes"):
        apply_update(payload, None, most_bytes=1000)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "float32", "int8", "exact"]),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=12,
    ),
    st.binary(max_size=30),
)  # fmt: skip
def test_whatever_a_sealed_header_says_it_is_a_state_or_a_value_error(rows: Any, body: bytes) -> None:
    for kind, base in (("full", None), ("delta", BASE)):
        found, refusal = attempt(sealed({"kind": kind, "tensors": rows}, body), base)
        assert (found is None) == bool(refusal)
        assert "\n" not in refusal
