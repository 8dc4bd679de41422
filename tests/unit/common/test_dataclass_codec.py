"""Guards the way from a TOML or JSON value to a typed setting: the wrong key or type is named with its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.dataclass_codec import PlainError, from_plain, to_plain
from fedstill.models.audiovisual.compression import Precision


@dataclass(frozen=True)
class Inner:
    budget: float = 0.5
    kind: Literal["near", "far"] = "near"

    def __post_init__(self) -> None:
        if self.budget > 1:
            raise ValueError(f"budget: {self.budget} is above 1")


@dataclass(frozen=True)
class Outer:
    name: str
    select: Inner = field(default_factory=Inner)
    sizes: tuple[int, ...] = ()
    pairs: tuple[tuple[int, ...], ...] = ()
    weights: tuple[tuple[str, float], ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    precision: Precision = Precision.FP32
    path: str | None = None
    on: bool = False


def test_a_full_table() -> None:
    value = {
        "name": "x", "select": {"budget": 1, "kind": "far"}, "sizes": [1, 2], "pairs": [[1], []],
        "weights": [["a", 1], ["b", 0.5]], "limits": {"a": 3}, "precision": "int8", "path": None, "on": True,
    }  # fmt: skip
    found = from_plain(Outer, value)
    assert found == Outer(
        "x",
        Inner(1.0, "far"),
        (1, 2),
        ((1,), ()),
        (("a", 1.0), ("b", 0.5)),
        {"a": 3},
        Precision.INT8,
        None,
        True,
    )
    assert isinstance(found.select.budget, float)
    assert isinstance(found.precision, Precision)


def test_defaults() -> None:
    assert from_plain(Outer, {"name": "x"}) == Outer("x")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "name: missing"),
        ({"name": "x", "selct": {}}, "selct: unknown key, did you mean select?"),
        ({"name": "x", "select": {"budgt": 1}}, "select.budgt: unknown key, did you mean budget?"),
        ({"name": "x", "select": {"zzz": 1}}, "select.zzz: unknown key (known: budget, kind)"),
        ({"name": "x", "select": 3}, "select: needs a table, got '3'"),
        ({"name": "x", "select": {"budget": "1"}}, "select.budget: needs float, got '1'"),
        ({"name": "x", "select": {"budget": True}}, "select.budget: needs float, got 'True'"),
        ({"name": "x", "select": {"budget": 2}}, "select.budget: 2.0 is above 1"),
        ({"name": "x", "select": {"kind": "nearest"}}, "select.kind: 'nearest' is not one of near, far"),
        ({"name": "x", "sizes": [1, "2"]}, "sizes[1]: needs int, got '2'"),
        ({"name": "x", "sizes": [1.5]}, "sizes[0]: needs int, got '1.5'"),
        ({"name": "x", "sizes": "12"}, "sizes: needs a list of int, got '12'"),
        ({"name": "x", "pairs": [[1], 2]}, "pairs[1]: needs a list of int, got '2'"),
        ({"name": "x", "weights": [["a", "b"]]}, "weights[0][1]: needs float, got 'b'"),
        ({"name": "x", "weights": [["a"]]}, "weights[0]: needs 2 values, got 1"),
        ({"name": "x", "limits": {"a": "b"}}, "limits.a: needs int, got 'b'"),
        ({"name": "x", "precision": "int4"}, "precision: needs Precision, got 'int4'"),
        ({"name": "x", "path": 3}, "path: needs str, got '3'"),
        ({"name": "x", "on": 1}, "on: needs bool, got '1'"),
        ({"name": 3}, "name: needs str, got '3'"),
        ([], "top level: needs a table, got '[]'"),
    ],
)
def test_what_is_wrong_is_named(value: object, text: str) -> None:
    with pytest.raises(PlainError) as caught:
        from_plain(Outer, value)
    assert str(caught.value) == text


@dataclass
class Crop:
    pct: float = 1.0


def test_a_whole_number_that_no_float_holds_is_named() -> None:
    with pytest.raises(PlainError, match="pct: needs float"):
        from_plain(Crop, {"pct": 10**400})


def test_a_literal_number_is_no_boolean_and_no_fraction() -> None:
    @dataclass(frozen=True)
    class Frames:
        channels: Literal[1, 3] = 1

    assert from_plain(Frames, {"channels": 3}) == Frames(3)
    for wrong in (True, 1.0, "1", [1]):
        with pytest.raises(PlainError, match="channels"):
            from_plain(Frames, {"channels": wrong})


@given(
    st.builds(
        Outer,
        name=st.text(max_size=5),
        select=st.builds(Inner, budget=st.floats(0, 1), kind=st.sampled_from(["near", "far"])),
        sizes=st.lists(st.integers(), max_size=3).map(tuple),
        limits=st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        precision=st.sampled_from(Precision),
        path=st.none() | st.text(max_size=3),
        on=st.booleans(),
    )
)
def test_there_and_back(value: Outer) -> None:
    assert from_plain(Outer, to_plain(value)) == value
