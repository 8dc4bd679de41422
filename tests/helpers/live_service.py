"""The real cloud of a service and the real ClientApp, over a grid in this process whose nodes come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from flwr.app import Message

from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.cloud_server.federation.node_registry import NodeRegistry
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.server_app import make_shared
from fedstill.cloud_server.federation.service import FleetService
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.fleet_state import read_fleet
from fedstill.cloud_server.journal.journal import Journal, open_journal
from fedstill.cloud_server.journal.visit import SERVED, Visit
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_to_json
from fedstill.datasets.audiovisual.store import open_store
from fedstill.edge_client.node.client_app import app as client_app
from fedstill.simulation.inprocess import InProcessGrid
from helpers.runs import trained_run

FIRST_NODE = 1000
ONE_ARM = ("run.arms=['fedstill']", "run.scenarios=['latency_insensitive']", "downlink.minimum_agreement=0")


def run_of_a_service(folder: Path, overrides: Sequence[str] = ()) -> Path:
    """A run whose shared models are there."""
    run_dir = trained_run(folder, (*ONE_ARM, *overrides))
    metrics = Metrics(run_dir)
    make_shared(SeedCloud(read_plan(run_dir), 0, metrics), ["fedstill"])
    metrics.close()
    return run_dir


class ComingAndGoing(InProcessGrid):
    """Nodes are online while they are in ``here``; ``deaf`` ones do not answer these actions.

    ``closes_at``: with a request of this action the SuperLink is gone, until ``closed`` is False again.
    """

    def __init__(self, run_dir: Path, names: Sequence[str]) -> None:
        super().__init__(client_app, len(names), {"run-dir": str(run_dir)})
        self.here: set[int] = set()
        self.deaf: set[tuple[int, str]] = set()
        self.closes_at, self.closed = "", False
        self.requests: list[tuple[int, str]] = []
        self.names = list(names)

    def get_nodes(self) -> list[SimpleNamespace]:
        """As the SuperLink knows them: by the names that their certificates have."""
        named = enumerate(self.names)
        return [SimpleNamespace(node_id=FIRST_NODE + client, name=name) for client, name in named]

    def get_node_ids(self) -> Iterable[int]:
        if self.closed:
            raise ConnectionError("connection refused")
        return [FIRST_NODE + client for client in self.here]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            client, action = message.metadata.dst_node_id - FIRST_NODE, message.metadata.message_type
            self.requests.append((client, action))
            self.closed = self.closed or action == self.closes_at
            if self.closed:
                raise ConnectionError("connection refused")
            self._silent = {client} if (client, action) in self.deaf else set()
            yield from super().push_messages([message])


@dataclass
class Running:
    """A service that looks when the test says so."""

    run_dir: Path
    grid: ComingAndGoing
    journal: Journal
    service: FleetService

    def until(self, condition: Callable[[], object], what: str) -> None:
        limit = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < limit, f"{what}: {self.newest()}"
            self.service.look()
            time.sleep(0.05)

    def newest(self) -> dict[int, Visit]:
        return self.journal.visits.newest()

    def outcome(self, client: int, visit: int) -> str:
        found = self.newest().get(client)
        return found.outcome if found and found.visit == visit else ""

    def serve(self, client: int, visit: int, outcome: str = SERVED) -> Visit:
        self.until(
            lambda: self.outcome(client, visit) == outcome, f"client {client}, visit {visit} {outcome}"
        )
        return self.newest()[client]

    def look_long(self) -> None:
        """Nothing may happen meanwhile."""
        for _ in range(10):
            self.service.look()
            time.sleep(0.05)

    def leave(self, client: int) -> None:
        self.grid.here.discard(client)
        self.until(lambda: self.link(client) == "dead", f"client {client} is gone")

    def link(self, client: int) -> str:
        return str(read_fleet(self.run_dir)["devices"][client]["state"])

    def asked(self, client: int, action: str) -> int:
        return self.grid.requests.count((client, action))


@contextmanager
def service_of(run_dir: Path, here: Iterable[int] = ()) -> Iterator[Running]:
    plan = read_plan(run_dir)
    public = open_store(Path(plan.public))
    clips = format_to_json(ClipFormat(public.class_names, public.audio_spec, public.frame_spec))
    grid, metrics, journal = ComingAndGoing(run_dir, plan.devices), Metrics(run_dir), open_journal(run_dir)
    grid.here |= set(here)
    exchange = Exchange(grid, plan.reply_timeout)
    with NodeRegistry(exchange, plan.clients, journal, metrics, clips, plan.devices) as registry:
        service = FleetService(SeedCloud(plan, 0, metrics), exchange, registry, journal, metrics)
        yield Running(run_dir, grid, journal, service)
        service.close()
    journal.close()
    metrics.close()
