"""The rooms of the house as figures: files per folder, lines per file, which room imports which, and any circle.

    python benchmarks/rooms.py

It reads imports as text (``ast``); nothing of the project is run. ``tests/unit/house/test_rooms.py`` holds the rules.
"""

from __future__ import annotations

import ast
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "common": 0,
    "models": 1,
    "datasets": 1,
    "protos": 2,
    "client": 3,
    "cloud_server": 4,
    "edge_client": 4,
    "evaluation": 5,
    "simulation": 6,
    "cli": 7,
}
"""A room may import from lower floors, and from its own room."""

Graph = Mapping[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the project by its name below ``fedstill``."""
    found = {}
    for room in FLOORS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which module imports which, imports inside functions and for type checkers included."""
    return {name: set(_imported(path, found)) - {name} for name, path in found.items()}


def _imported(path: Path, found: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            name = target.removeprefix("fedstill.")
            if name == target:
                continue
            yield name if name in found else name.rpartition(".")[0]


def rooms(graph: Graph) -> dict[str, set[str]]:
    """The same for folders: an arrow for every import that leaves one."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        arrows[_room(name)] |= {_room(target) for target in targets} - {_room(name)}
    return dict(arrows)


def _room(module: str) -> str:
    return module.rpartition(".")[0] or module


def circles(graph: Graph) -> list[list[str]]:
    """Groups in which everything imports everything else, directly or not (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in order:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], order[target])
        if lowest[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def upward(graph: Graph) -> list[str]:
    """Imports that climb, or that cross between rooms of one floor."""
    wrong = []
    for name, targets in graph.items():
        room = name.partition(".")[0]
        for target in targets:
            other = target.partition(".")[0]
            if other != room and FLOORS[other] >= FLOORS[room]:
                wrong.append(f"{name} -> {target}")
    return sorted(wrong)


def files_per_folder(paths: Iterable[Path]) -> dict[str, int]:
    """Source files in each folder, generated ones and ``__init__.py`` left out."""
    counts: dict[str, int] = defaultdict(int)
    for path in paths:
        if path.name != "__init__.py" and "_pb2" not in path.name:
            counts[str(path.parent.relative_to(ROOT))] += 1
    return dict(counts)


def main() -> None:
    """Print the figures."""
    console = Console(highlight=False, soft_wrap=True)
    found = modules()
    graph = imports(found)
    counts = files_per_folder(found.values())
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in found.values()
        if path.name != "__init__.py" and "_pb2" not in path.name
    }
    largest = max(lines, key=lambda name: lines[name])
    middle = statistics.median(lines.values())
    console.print(
        f"{len(lines)} files, median {middle:.0f} lines, largest {largest} ({lines[largest]} lines)"
    )
    console.print(f"circles between files: {circles(graph) or 'none'}")
    console.print(f"circles between folders: {circles(rooms(graph)) or 'none'}")
    console.print(f"imports that climb or cross: {upward(graph) or 'none'}")
    for folder, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        console.print(f"{count:4}  {folder}")


if __name__ == "__main__":
    main()
