"""Which library runs this device's students: onnxruntime if its folder holds an exported student, else torch."""

from __future__ import annotations

from pathlib import Path

from fedstill.edge_client.folder import EXPORT_FOLDER
from fedstill.edge_client.students.runtime_api import LoadStudent


def loader(folder: Path, *, one_thread: bool = True) -> LoadStudent:
    """How the device in ``folder`` makes a runtime of a student. An export's graphs run any student of its kind.

    Args:
        folder: the device's.
        one_thread: False where torch's threads belong to somebody else, such as a program that uses fedstill.
    """
    if (folder / EXPORT_FOLDER).exists():
        from fedstill.edge_client.students.runtime import ExportFolder

        return ExportFolder.open(folder / EXPORT_FOLDER).load
    from fedstill.edge_client.students.torch_runtime import load_torch, use_one_thread

    if one_thread:
        use_one_thread()
    return load_torch
