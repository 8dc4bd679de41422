"""``fedstill agent status`` and ``wipe``: a device's folder, for its owner. The agent need not run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedstill.cli.agent.parts import AgentFolder
from fedstill.cli.shared.missing_package import EDGE, require


def status(
    state: AgentFolder,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Show what a device does: its link, its student, its clips, what has left it, and what may."""
    require(EDGE)
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.edge_client.owner.agent_status import in_words, read_status

    with one_line_errors(OSError):
        found = read_status(state)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, words in in_words(found):
        console.print(f"{name:11} {words}", highlight=False, markup=False, soft_wrap=True)


def wipe(
    state: AgentFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete all that an agent keeps: clips, students, logs, the record of spent privacy. Nothing else."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.edge_client.owner.wipe import what_is_kept, wipe_folder

    with one_line_errors(OSError):
        kept = what_is_kept(state)
        if not yes:
            typer.confirm(f"Delete {kept.files} files, {kept.bytes / 1e6:.1f} MB, in {state}?", abort=True)
        left = wipe_folder(state)
    stays = f"; not the agent's, and still there: {', '.join(left)}" if left else ""
    console.print(f"{state}: deleted{stays}", highlight=False, markup=False, soft_wrap=True)
