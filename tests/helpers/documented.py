"""What README, how-tos, tutorial and examples tell people to type: commands and Python, as the pages have them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorial").glob("*.md")),
    ROOT / "docs" / "reference" / "api.md",
    *sorted((ROOT / "examples").rglob("README.md")),
)
SHELLS = ("", "sh", "bash", "shell", "console")
TOOLS = ("fedstill", "make", "python", "python3")


@dataclass(frozen=True)
class Block:
    """A code block. language: of a fence; empty for an indented block, or a fence that names none."""

    page: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command of a page. words: as the shell would split it, the tool's bare name first."""

    page: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def blocks() -> list[Block]:
    """Every code block of every page."""
    return [
        block for page in PAGES for block in _blocks(str(page.relative_to(ROOT)), page.read_text("utf-8"))
    ]


def commands() -> list[Command]:
    """Every call of ``fedstill``, ``make`` or ``python`` in a block that is for a shell."""
    return [
        Command(block.page, words)
        for block in blocks()
        if block.language in SHELLS
        for line in block.text.replace("\\\n", " ").splitlines()
        for words in _commands(line)
    ]


def _blocks(page: str, text: str) -> Iterator[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for found in fence.finditer(text):
        yield Block(page, found[1], found[2])
    for found in re.finditer(r"(?:^(?: {4}.*)?\n)+", fence.sub("", text), re.MULTILINE):
        lines = [line.removeprefix("    ") for line in found[0].splitlines()]
        if any(lines):
            yield Block(page, "", "\n".join(lines) + "\n")


def _commands(line: str) -> Iterator[tuple[str, ...]]:
    """The calls in one line, also those within a quoted argument of another tool."""
    try:
        words = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:  # a line of something that is no shell
        return
    for call in _split(words):
        name = Path(call[0]).name
        if name == "sudo" and "-u" in call:
            call = call[call.index("-u") + 2 :]
            name = Path(call[0]).name
        if name in TOOLS:
            yield (name, *call[1:])
        for word in call[1:]:
            if word.startswith("fedstill ") and name not in TOOLS:
                yield from _commands(word)


def _split(words: list[str]) -> Iterator[list[str]]:
    call: list[str] = []
    for word in [*words, "&&"]:
        if word in ("&&", ";", "|"):
            if call:
                yield call
            call = []
        else:
            call.append(word)
