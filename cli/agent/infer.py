"""``fedstill agent infer``: clips classified once, with the student that a device has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.agent.parts import (
    AgentFolder,
    Client,
    Credentials,
    Infer,
    Inference,
    Insecure,
    Mode,
    Objective,
    failures,
    identity_of,
    student_of,
)
from fedstill.cli.shared.missing_package import EDGE, require
from fedstill.cli.shared.service import serve


def infer_once(
    clips: Annotated[list[Path], typer.Argument(help="Videos, or sound files with pictures beside them.")],
    state: AgentFolder,
    credentials: Credentials = None,
    inference: Inference = "",
    infer: Mode = Infer.LOCAL,
    objective: Objective = 300.0,
    insecure: Insecure = False,
    client: Client = -1,
) -> None:
    """Classify clips with the student that this device has: one JSON line each."""
    require(EDGE)
    from fedstill.edge_client.inference.watch import infer_files

    with serve(*failures()):
        who = None
        if infer is not Infer.LOCAL:
            who = identity_of("", inference, credentials, insecure, client, state.resolve())
        student = student_of(state.resolve(), who, infer, objective)
        try:
            fine = infer_files(student.classify, clips, sys.stdout)
        finally:
            student.close()
    if not fine:
        raise typer.Exit(1)
