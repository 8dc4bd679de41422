"""Graphs that the coordinator sends to a device without torch, kept as ``fedstill export`` would, without weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, locked, replace_file
from fedstill.common.export_manifest import DESCRIPTION, ENCODERS, HEAD, STATISTICS, from_json
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.protos.messages import StudentGraphs


def keep_graphs(folder: Path, graphs: StudentGraphs) -> None:
    """Write the graphs, and last their description, by which a folder is a whole one.

    Raises:
        DeviceError: they are not what their description says, or cannot be written; nothing has changed then.
    """
    sent = {ENCODERS: graphs.encoders, HEAD: graphs.head, STATISTICS: graphs.statistics}
    files = {name: part.tobytes() for name, part in sent.items() if len(part)}
    try:
        described = from_json(graphs.description)
    except ValueError as error:
        raise DeviceError(f"graphs: their description cannot be read ({error})") from error
    found = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if described.files != found or set(described.weights) != set(files):
        raise DeviceError("graphs: are not what their description says")
    try:
        with locked(folder):
            (folder / DESCRIPTION).unlink(missing_ok=True)
            for name, content in files.items():
                replace_file(folder / name, content, PRIVATE)
            replace_file(folder / DESCRIPTION, graphs.description.encode(), PRIVATE)
    except OSError as error:
        raise DeviceError(f"graphs: {error.strerror or error} in the device's folder") from error
