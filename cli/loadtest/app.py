"""``fedstill loadtest``: policies against a load in virtual time, or a live server against a load."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import typer
from click import Context
from typer.core import TyperGroup

from fedstill.cli.loadtest.live import live
from fedstill.cli.loadtest.virtual import virtual
from fedstill.cli.shared.console import MISTAKE, say_in_one_line
from fedstill.common.errors import ConfigError


class _Group(TyperGroup):
    """Answers the old spellings, of one command, with the present one."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            say_in_one_line(
                "error", ConfigError(f"loadtest is two commands now; type: {todays_spelling(args)}")
            )
            raise typer.Exit(MISTAKE)
        return super().parse_args(ctx, args)


def todays_spelling(arguments: Sequence[str]) -> str:
    """The present spelling for options directly after ``fedstill loadtest``."""
    live_ones = [one for one in arguments if one.partition("=")[0] == "--target"]
    if "--virtual" in arguments and not live_ones:
        rest = [one for one in arguments if one != "--virtual"]
        return shlex.join(["fedstill", "loadtest", "virtual", *rest])
    if live_ones and "--virtual" not in arguments:
        return shlex.join(["fedstill", "loadtest", "live", *arguments])
    return "fedstill loadtest virtual, or fedstill loadtest live --target HOST:PORT of a running server"


app = typer.Typer(
    cls=_Group, help="Serving policies on a load: utility, deadlines, schedules, against an upper bound."
)
app.command()(virtual)
app.command()(live)
