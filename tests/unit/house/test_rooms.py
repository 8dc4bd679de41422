"""The rules of the rooms: imports go down, none in a circle, edge and cloud apart, no crowded folder."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOMS = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "rooms.py"))
MOST_FILES = 20


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = ROOMS["modules"]()
    assert len(found) > 300
    return ROOMS["imports"](found)


def test_the_graph_sees_imports(graph: dict[str, set[str]]) -> None:
    assert "cloud_server.distillation.rounds" in graph["cloud_server.distillation.arms"]
    assert "simulation.config" in graph["cli.main"] | graph.get("cli.simulate", set())  # inside a function


def test_no_import_goes_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert ROOMS["circles"](graph) == []
    assert ROOMS["circles"](ROOMS["rooms"](graph)) == []


def test_a_circle_would_be_seen() -> None:
    assert ROOMS["circles"]({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_imports_go_down_and_edge_and_cloud_stay_apart(graph: dict[str, set[str]]) -> None:
    assert ROOMS["upward"](graph) == []
    assert ROOMS["upward"]({"edge_client.a": {"cloud_server.b"}, "common.c": {"cli.d"}}) == [
        "common.c -> cli.d",
        "edge_client.a -> cloud_server.b",
    ]


def test_no_folder_is_crowded() -> None:
    counts = ROOMS["files_per_folder"](ROOMS["modules"]().values())
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}
