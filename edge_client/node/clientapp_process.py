"""What handles one message: Flower's ``flwr-clientapp`` without the imports of its SuperNode.

Flower starts that command for every message and finds it through PATH. Its own imports the SuperNode with SQLAlchemy,
too, which is half of the processor time of a light message. So the agent puts a command of this name first on PATH,
which has the message handled by ``main`` here: in a child of the warm process (``hand_over.py``, ``warm_start.py``), or
in its own. Where the state folder may not hold programs, PATH leads to Flower's own.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, replace_file

NAME = "flwr-clientapp"
PROGRAM = 0o700
FIRST = "hand_over.py"
# Started by the shell, because a first line may hold neither spaces nor long paths. Without the module ``site``
# (-S), which looks through what is installed, Python starts in two thirds of the time.
SCRIPT = """#!/bin/sh
exec {python} -S -P "${{0%/*}}/{first}" "$0" "$@"
"""


def install_command(folder: Path) -> None:
    """Write the command into ``folder``, for this Python environment.

    With a copy of what it starts, which then fits the warm process of the same start, whatever is installed later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / FIRST, Path(__file__).with_name(FIRST).read_bytes(), PRIVATE)
    script = SCRIPT.format(python=shlex.quote(sys.executable), first=FIRST)
    replace_file(folder / NAME, script.encode(), PROGRAM)


def main() -> None:
    """Handle the message that the options name."""
    from flwr.common.args import try_obtain_flwr_app_token
    from flwr.supercore.tls import validate_and_resolve_root_certificates
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    options = parser().parse_args()
    run_clientapp(
        runtime_api_address=options.runtime_api_address,
        token=try_obtain_flwr_app_token(options),
        insecure=options.insecure,
        certificates=validate_and_resolve_root_certificates(options.root_certificates, options.insecure),
        parent_pid=options.parent_pid,
        runtime_dependency_install=options.runtime_dependency_install,
    )


def parser() -> argparse.ArgumentParser:
    """Of Flower's options."""
    from flwr.common.args import add_args_flwr_app_common

    made = argparse.ArgumentParser(NAME)
    made.add_argument("--runtime-api-address", required=True)
    add_args_flwr_app_common(made)
    return made
