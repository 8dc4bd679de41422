"""``fedstill export``: a trained student as files for a device that has onnxruntime and no torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.shared.console import console, one_line_errors


class Target(StrEnum):
    """Export formats."""

    ONNX = "onnx"


def export(
    student: Annotated[
        Path,
        typer.Argument(help="Checkpoint without suffix: RUN/seed0/students/NAME, RUN/seed0/all_distill."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the files; an earlier export there is replaced.")],
    to: Annotated[Target, typer.Option(help="Format.")] = Target.ONNX,
    int8: Annotated[bool, typer.Option("--int8", help="Also write int8 encoders; needs --store.")] = False,
    store: Annotated[
        Path | None,
        typer.Option(help="Clip store with public clips, such as RUN/public; gives the class prior."),
    ] = None,
) -> None:
    """Write a student as ONNX, for devices without torch."""
    from fedstill.cloud_server.export.students import export_student
    from fedstill.datasets.audiovisual.store import open_store

    with one_line_errors():
        described = export_student(student, out, store=open_store(store) if store else None, int8=int8)
    for name in described.files:
        console.print(f"{(out / name).stat().st_size:>12,} {name}", highlight=False, soft_wrap=True)
    console.print(f"student {described.version[:16]} in {out}", highlight=False, soft_wrap=True)
