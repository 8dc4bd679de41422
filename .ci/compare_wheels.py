"""Stops unless two wheels hold the same files, and those are exactly what the rooms of a checkout hold.

python .ci/compare_wheels.py FROM_TREE.whl FROM_SDIST.whl CHECKOUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from zipfile import ZipFile

NEEDED = (
    "fedstill/__init__.py",
    "fedstill/py.typed",
    "fedstill/cloud_server/serving/endpoints/openapi.json",
    "fedstill/cloud_server/serving/monitoring/dashboard_page/index.html",
    "fedstill/evaluation/federated/templates/report.html",
    "fedstill/protos/serving.proto",
    "fedstill/simulation/experiments/modes/clean.toml",
    "fedstill/simulation/experiments/quickstart.toml",
    "fedstill/simulation/flower_app/pyproject.toml",
)
"""One of each kind, so that the comparison cannot pass with two equally empty sides."""


def contents(wheel: Path) -> dict[str, int]:
    """Name and checksum of every file but RECORD, which lists the others."""
    with ZipFile(wheel) as archive:
        files = {info.filename: info.CRC for info in archive.infolist()}
    return {name: crc for name, crc in files.items() if not name.endswith(".dist-info/RECORD")}


def rooms(checkout: Path) -> set[str]:
    """All files that importroot shows, through its links."""
    start = checkout / "importroot"
    found = set()
    for folder, folders, files in os.walk(start, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.endswith(".egg-info")]
        found |= {(Path(folder) / name).relative_to(start).as_posix() for name in files}
    return found


def main() -> None:
    """Compare what the command line names; ends the process with one line if it is not the same."""
    from_tree, from_sdist = (contents(Path(argument)) for argument in sys.argv[1:3])
    if from_tree != from_sdist:
        differing = sorted(
            name for name in from_tree | from_sdist if from_tree.get(name) != from_sdist.get(name)
        )
        sys.exit(f"the wheel of the sdist differs from the tree's in {differing}")
    shipped = {name for name in from_tree if ".dist-info/" not in name}
    if shipped != rooms(Path(sys.argv[3])):
        sys.exit(f"wheel and rooms differ in {sorted(shipped ^ rooms(Path(sys.argv[3])))}")
    missing = [name for name in NEEDED if name not in shipped]
    if missing:
        sys.exit(f"the wheel lacks {missing}")
    sys.stdout.write(f"{len(shipped)} files, the same from tree and sdist\n")


if __name__ == "__main__":
    main()
