"""What the pages for contributors list is what lies in the repository."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
LEVELS = 2


def rooms() -> set[str]:
    """The packages of the first two levels that are more than a folder of data."""
    packages = {
        path.parent.relative_to(ROOT / "importroot" / "fedstill")
        for level in range(1, LEVELS + 1)
        for path in (ROOT / "importroot" / "fedstill").glob("*/" * level + "__init__.py")
    }
    with_parents = packages | {package.parent for package in packages}
    return {str(package) for package in with_parents if package != Path()}


def printed_tree() -> set[str]:
    """The folders of CONTRIBUTING's tree, by path."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert found is not None
    folders, parent = set(), ""
    for line in found[1].splitlines():
        indent, name, meaning = re.fullmatch(r"( *)(\w+)/ +(.+)", line).groups()  # type: ignore[union-attr]
        assert meaning
        parent = parent if indent else name
        folders.add(f"{parent}/{name}" if indent else name)
    return folders


def test_every_room_is_in_the_tree_of_contributing() -> None:
    assert rooms() - printed_tree() == set()


def test_the_files_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = set(re.findall(r"`([\w/.-]+/[\w.-]+\.(?:py|toml|proto))`", text))
    links = set(re.findall(r"\]\(([\w/.-]+)", text))
    named = {name for name in code | links if "NAME" not in name}
    assert len(named) > 25
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_benchmark_is_on_the_page_of_benchmarks() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    files = {str(path.relative_to(ROOT / "benchmarks")) for path in (ROOT / "benchmarks").rglob("*.py")}
    assert files - set(re.findall(r"`([\w/]+\.py)`", page)) == set()
