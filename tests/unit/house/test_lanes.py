"""The lanes of the tests name files that are there, and keep the files of a lane together and first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from helpers.lanes import LANES, LaneScheduling, lanes_first

TESTS = Path(__file__).parents[2]


def test_every_file_of_a_lane_is_there_and_in_no_other_one() -> None:
    files = [name for lane in LANES for name in lane]
    assert len(set(files)) == len(files)
    assert set(files) <= {path.name for path in (TESTS / "e2e").iterdir()}


def test_a_lane_is_one_piece_of_work_and_comes_first() -> None:
    first, second = LANES[0][:2]
    names = ["tests/unit/a.py::test_z", f"tests/e2e/{second}::test_y", f"tests/e2e/{first}::test_x[a::b]"]
    items = [SimpleNamespace(nodeid=name) for name in names]
    lanes_first(items)  # type: ignore[arg-type]
    assert [item.nodeid for item in items] == names[::-1]
    scope = LaneScheduling._split_scope
    unbound = LaneScheduling.__new__(LaneScheduling)
    assert [scope(unbound, name) for name in names] == ["tests/unit/a.py", "lane 0", "lane 0"]
