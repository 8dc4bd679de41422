"""The console of a command, and the one line in which its errors end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from fedstill.common.errors import RunError, UserError, first_line

FAILED, MISTAKE = 1, 2
"""Exit codes."""
SYMLINK_LOOP = "Symlink loop"

console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)


@contextmanager
def one_line_errors(*failures: type[Exception]) -> Iterator[None]:
    """A mistake of the user's: one line, exit code 2. A failed run, or one of ``failures``: one line, exit code 1."""
    expected: tuple[type[Exception], ...] = (RunError, *failures)
    try:
        yield
    except UserError as error:
        say_in_one_line("error", error)
        raise typer.Exit(MISTAKE) from None
    except expected as error:
        say_in_one_line("stopped" if failures else "the run failed", error)
        raise typer.Exit(FAILED) from None
    except RuntimeError as error:  # of Path.resolve, before Python 3.13
        if not str(error).startswith(SYMLINK_LOOP):
            raise
        say_in_one_line("error", UserError(f"{error}: give the path of a real file or folder"))
        raise typer.Exit(MISTAKE) from None


def typed_command() -> str:
    """This command line, to be kept with its results."""
    return shlex.join(["fedstill", *sys.argv[1:]])


def say_in_one_line(what: str, error: BaseException) -> None:
    """The first line of an error, after the kind of end."""
    line = first_line(error)
    errors.print(f"[red]{what}:[/] {escape(line)}", highlight=False, soft_wrap=True)
