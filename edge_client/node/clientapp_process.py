"""The process that handles one message: Flower's ``flwr-clientapp`` without the imports of its SuperNode.

Flower starts that command for every message and finds it through PATH. Its own imports the SuperNode with SQLAlchemy,
too, which is half of the processor time of a light message. So the agent puts a command of this name first on PATH,
which calls what Flower's calls. Where the state folder may not hold programs, PATH leads to Flower's own.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fedstill.common.atomic_files import replace_file

NAME = "flwr-clientapp"
PROGRAM = 0o700
# Started by the shell, which then starts Python on the same file: a first line may hold neither spaces nor long paths.
SCRIPT = """#!/bin/sh
'''exec' {python} "$0" "$@"
' '''
from fedstill.edge_client.node.clientapp_process import main
main()
"""


def install_command(folder: Path) -> None:
    """Write the command into ``folder``, for this Python environment."""
    folder.mkdir(parents=True, exist_ok=True)
    script = SCRIPT.format(python=shlex.quote(sys.executable))
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
