"""Where the ``fedstill`` command starts. What is asked often, and of small machines, does not load all other commands.

``fedstill status`` is such a one: an operator's scripts ask it every few seconds. All else is in ``main.py``.
"""

from __future__ import annotations

import sys

import typer


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["status"]:
        _status_alone()
    else:
        from fedstill.cli.main import main as with_all

        with_all()


def _status_alone() -> None:
    from fedstill.cli.shared.missing_package import missing_package_in_one_line
    from fedstill.cli.status import status

    app = typer.Typer(name="fedstill", add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_no_options)
    app.command()(status)
    with missing_package_in_one_line():
        app()


def _no_options() -> None:
    """Makes ``status`` a command with a name, as it is beside others."""
