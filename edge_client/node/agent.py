"""The device's process: keeps this node in the fleet and also classifies clips with the device's student.

Everything that must last is in the state folder: the prepared clips, the students, the privacy ledger. Flower runs a
fresh ClientApp process for every message, so this process itself holds nothing that a kill could lose.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.folder_lock import LOCK_FILE, sole_user
from fedstill.edge_client.link.link_note import LinkNotes
from fedstill.edge_client.link.monthly_bytes import MonthlyBytes
from fedstill.edge_client.node.agent_news import AgentNews
from fedstill.edge_client.node.supernode import Link, SuperNode
from fedstill.edge_client.node.upload_gate import Contacts, UploadGate, UploadHours
from fedstill.edge_client.privacy.prototypes import DeviceError

LOG = logging.getLogger(__name__)

TEND_SECONDS = 1.0

Task = Callable[[threading.Event], None]
"""Something that runs beside the node until the event is set."""


@dataclass(frozen=True)
class AgentSettings:
    """One device.

    Attributes:
        state: the folder that only this agent uses.
        link: how to reach the coordinator.
        client: this device's number in the run.
        name: the operator's name for it.
        patience: seconds of refusals before the agent gives up.
        hours: in which it may send; None: at any time. Outside them, and while it is paused, there is no node.
        pause: seconds between two contacts with the coordinator while there is nothing to do; 0: it stays connected.
        stays: it does not give up then, but tries less often, for the sake of its tasks.
        budget: of a metered link, whose relay counts into it; None: any number of bytes. Once it is spent, there is no
            node until the next month.
    """

    state: Path
    link: Link
    client: int
    name: str
    patience: float = 180.0
    hours: UploadHours | None = None
    pause: float = 0.0
    budget: MonthlyBytes | None = None
    stays: bool = False


def run_agent(
    settings: AgentSettings,
    tasks: Sequence[Task],
    stop: threading.Event,
    listeners: Sequence[Callable[[bool], None]] = (),
) -> None:
    """Until ``stop`` is set.

    Args:
        listeners: told once a second whether the node is in the fleet; a pause between two contacts counts as that.

    Raises:
        FolderInUse: another agent uses this state folder.
        DeviceError: the folder was deleted while it ran.
        NodeRefused: the coordinator does not accept this node.
        Exception: raised by a task; the node is ended first.
    """
    with sole_user(settings.state):
        node = SuperNode(
            settings.state, settings.link, settings.client, settings.name, settings.patience, settings.stays
        )
        node.stop()  # one that a killed agent has left would send while this one may not
        news = AgentNews(settings.state)
        gate = UploadGate(settings.state, settings.hours, budget=settings.budget)
        contacts, link = Contacts(settings.state, settings.pause), LinkNotes(settings.state)
        failed: list[BaseException] = []

        def run(task: Task) -> None:
            try:
                task(stop)
            except BaseException as error:
                failed.append(error)
                stop.set()

        threads = [
            threading.Thread(target=run, args=(task,), name=f"task{n}") for n, task in enumerate(tasks)
        ]
        for thread in threads:
            thread.start()
        LOG.info(
            "event=agent_started name=%s client=%d state=%s", settings.name, settings.client, settings.state
        )
        try:
            while not stop.is_set():
                if not (settings.state / LOCK_FILE).exists():
                    raise DeviceError(f"{settings.state}: this folder was deleted: start the agent again")
                is_open = gate.look()
                if is_open and contacts.look(node.idle):
                    node.reconcile()
                else:
                    node.rest()
                link.look(node.settled, contacts.resting, gate.closed, node.trouble)
                for tell in listeners:
                    tell(node.settled or (is_open and contacts.resting))
                news.look(node.started)
                stop.wait(TEND_SECONDS)
        finally:
            stop.set()
            node.stop()
            for thread in threads:
                thread.join()
            LOG.info("event=agent_stopped name=%s", settings.name)
        if failed:
            raise failed[0]
