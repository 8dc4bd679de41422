"""The command line inside this process. Typer's own runner builds all commands anew for every call, which takes longer
than most mistakes; here they are built once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from click.testing import CliRunner as ClickRunner
from click.testing import Result
from typer import Typer
from typer.main import get_command

built = cache(get_command)


class CliRunner(ClickRunner):
    """Use like ``typer.testing.CliRunner``."""

    def invoke(self, app: Typer, args: Sequence[str] = (), **options: Any) -> Result:  # type: ignore[override]
        """See click's; ``app`` is Typer's."""
        return super().invoke(built(app), args, **options)
