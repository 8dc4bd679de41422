"""A short call at the cloud once a day, for what it has to say of credentials: a new token, other roots.

A device that answers clips by itself, or has none to answer, would never learn that its token ends or that the fleet's
authority is rolled over. The connection is an ordinary one, which is closed again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedstill.edge_client.folder import SHELF_FOLDER
from fedstill.edge_client.inference.cloud_connection import CloudConnection
from fedstill.edge_client.inference.cloud_stream import Address
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students.students import ModelStore

DAY_SECONDS, AGAIN_SECONDS = 86_400.0, 3600.0
"""Between two visits, and after one to which nobody answered."""
LOOK_SECONDS = 10.0
"""Between two looks whether anything may be sent, and whether there is a student, which the call names."""
ANSWER_SECONDS, STEP_SECONDS = 30.0, 0.25


class CredentialsVisits:
    """A task of the agent.

    Args:
        folder: the agent's.
        address: of the cloud's inference service.
        closed: why nothing may be sent now; empty if it may.
    """

    def __init__(self, folder: Path, address: Address, closed: Callable[[], str]) -> None:
        self._folder, self._address, self._closed = folder, address, closed

    def __call__(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        while not stop.is_set():
            seconds = LOOK_SECONDS if self._closed() else self._visit(stop)
            stop.wait(seconds)

    def _visit(self, stop: threading.Event) -> float:
        """Seconds until the next one."""
        try:
            student = ModelStore(self._folder / SHELF_FOLDER).current()
        except DeviceError:  # which the agent says itself, and which ends no agent
            return AGAIN_SECONDS
        if student is None:
            return LOOK_SECONDS
        connection = CloudConnection(self._address, student.version, student.class_names)
        connection.start()
        try:
            end = time.monotonic() + ANSWER_SECONDS
            while time.monotonic() < end and not stop.wait(STEP_SECONDS) and not self._closed():
                if connection.wait(STEP_SECONDS):
                    return DAY_SECONDS
        finally:
            connection.close()
        return AGAIN_SECONDS
