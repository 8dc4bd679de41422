"""The owner's word that a device keeps the student that it has: the file ``keep-student`` in its folder.

Then nothing is told about its clips and no other student is installed, until the file is gone. A device without a
student gets its first one all the same.
"""

from __future__ import annotations

from pathlib import Path

from fedstill.edge_client.folder import KEEP_FILE, SHELF_FOLDER
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students.pointer import version_in_use


def is_kept(folder: Path) -> bool:
    """Whether the device in ``folder`` keeps its student."""
    return (folder / KEEP_FILE).exists() and bool(version_in_use(folder / SHELF_FOLDER))


def require_change_allowed(folder: Path, version: str = "") -> None:
    """Raise DeviceError if the device keeps its student.

    version: of the one to be installed, which may be the one in use: a repeated request gets the same answer.
    """
    if is_kept(folder) and version != version_in_use(folder / SHELF_FOLDER):
        raise DeviceError("this device's owner keeps its student; nothing is uploaded or installed")
