"""Every command of README, how-tos, tutorial and examples is one that the real command line accepts."""

from __future__ import annotations

import importlib.util
import subprocess
from functools import cache

import click
import pytest
import typer.main
from helpers.documented import PAGES, ROOT, Block, Command, blocks, commands

from fedstill.cli.main import app

COMMANDS = commands()
PYTHON = [block for block in blocks() if block.language == "python"]


@cache
def command_line() -> click.Command:
    return typer.main.get_command(app)


def parse(words: tuple[str, ...]) -> list[str]:
    """The sub-commands and options that click finds; nothing is run. Raises click.ClickException or Exit."""
    command = command_line()
    context, name, rest, path = None, "fedstill", list(words), []
    while True:
        context = command.make_context(name, rest, parent=context)
        path.append(name)
        left = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not left:
            return path
        resolved, found, rest = command.resolve_command(context, left)
        assert found is not None
        assert resolved is not None
        command, name = found, resolved


def test_commands_are_found_on_every_kind_of_page() -> None:
    assert len(COMMANDS) > 45
    assert {"README.md", "docs/how-to/serve.md", "docs/tutorial/first-run.md"} <= {
        one.page for one in COMMANDS
    }
    assert {"fedstill", "make", "python"} <= {one.words[0] for one in COMMANDS}
    texts = {one.text for one in COMMANDS}
    assert "fedstill certs issue certs kitchen" in texts  # after &&
    assert "fedstill certs revoke /certs kitchen" in texts  # quoted, inside of another command
    assert any("--credentials kitchen --data clips" in text for text in texts)  # over two lines
    assert len(PAGES) > 15


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: f"{one.page}: {one.text}")
def test_the_command_line_accepts_it(command: Command) -> None:
    tool, *arguments = command.words
    if tool == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif tool == "fedstill":
        assert len(parse(tuple(arguments))) >= 2, "no sub-command"
    elif arguments[:1] == ["-m"]:
        assert arguments[1] in ("pip", "venv", "build") or importlib.util.find_spec(arguments[1])
    else:
        assert (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize(
    "words",
    [("simulat",), ("simulate", "--sead", "3"), ("certs", "issue", "certs"), ("serve", "--waiting", "many")],
)
def test_a_wrong_command_would_be_seen(words: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        parse(words)


@pytest.mark.parametrize("block", PYTHON, ids=lambda one: one.page)
def test_python_on_a_page_compiles(block: Block) -> None:
    compile(block.text, block.page, "exec")
