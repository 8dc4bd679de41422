"""Which library runs this device's students: onnxruntime if its folder holds graphs for them, else torch.

A device with neither gets graphs from the coordinator, which it asks for them (``messages.MissingDependency``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedstill.common.export_manifest import DESCRIPTION
from fedstill.edge_client.folder import EXPORT_FOLDER
from fedstill.edge_client.students.runtime_api import DeviceRuntime, LoadStudent, OtherNetwork


def loader(folder: Path, *, one_thread: bool = True) -> LoadStudent:
    """How the device in ``folder`` makes a runtime of a student. An export's graphs run any student of its kind.

    Args:
        folder: the device's.
        one_thread: False where torch's threads belong to somebody else, such as a program that uses fedstill.
    """
    if (folder / EXPORT_FOLDER / DESCRIPTION).exists():
        from fedstill.edge_client.students.runtime import ExportFolder

        return ExportFolder.open(folder / EXPORT_FOLDER).load
    try:
        from fedstill.edge_client.students.torch_runtime import load_torch, use_one_thread
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return _load_nothing
    if one_thread:
        use_one_thread()
    return load_torch


def late_loader(folder: Path) -> LoadStudent:
    """The same, looked at again for every student: for a process that lives while graphs arrive."""

    def load(
        state: Mapping[str, npt.NDArray[Any]], spec: str, class_names: tuple[str, ...], version: str
    ) -> DeviceRuntime:
        return loader(folder)(state, spec, class_names, version)

    return load


def _load_nothing(
    state: Mapping[str, npt.NDArray[Any]], spec: str, class_names: tuple[str, ...], version: str
) -> DeviceRuntime:
    raise OtherNetwork(
        "this device has neither torch nor graphs for its students: let its coordinator send them"
    )
