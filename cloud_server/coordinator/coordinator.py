"""The cloud's process: a SuperLink on loopback, the proxy by which devices reach it, and the run itself.

It keeps all of that alive. If the SuperLink or the ServerApp dies, it starts them again and resubmits the plan; thanks
to the journal, the run continues. If nodes are issued or revoked meanwhile, the SuperLink's list follows, and so does a
service's plan. In a study a new device gets its jobs once the present ones are done.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedstill.cloud_server.auth.authority import Authority, read_authority
from fedstill.cloud_server.auth.register import list_nodes
from fedstill.cloud_server.coordinator.proxy_process import ProxyProcess
from fedstill.cloud_server.coordinator.superlink import SuperLink
from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.cloud_server.journal.event_log import EventTail
from fedstill.common.atomic_files import replace_text
from fedstill.common.credentials import CredentialError
from fedstill.common.flower_cli import FlowerError
from fedstill.common.folder_lock import sole_user
from fedstill.common.run_layout import STATUS_FILE

LOG = logging.getLogger(__name__)

TEND_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""Seconds between two looks at the register of nodes and at Flower's status of the run."""
WARN_SECONDS = 86_400.0
MOST_UNANSWERED = 5
"""Requests in a row that a SuperLink may leave unanswered: one that was just killed still counts as running."""


class CoordinatorError(RuntimeError):
    """The service cannot go on; one line."""


@dataclass(frozen=True)
class CoordinatorSettings:
    """One coordinator.

    Attributes:
        state: its folder, a run directory with ``plan.json``.
        app: folder of the Flower app bundle.
        host, port: where devices reach the fleet routes; port 0 takes a free one.
        authority: folder of ``fedstill certs init``; None serves without TLS and without node authentication.
        inference_listen: ``HOST:PORT`` of the inference service; empty for none.
        once: end when the plan is done, instead of waiting for new devices.
        attempts: how often in a row a run may fail.
    """

    state: Path
    app: Path
    host: str
    port: int
    authority: Path | None
    inference_listen: str = ""
    once: bool = False
    attempts: int = 5


def run_coordinator(settings: CoordinatorSettings, stop: threading.Event) -> None:
    """Until ``stop`` is set, or the plan is done if ``once``.

    Raises:
        FolderInUse: another coordinator uses this state folder.
        CoordinatorError: the run failed ``attempts`` times in a row; the reason is the last one.
        FlowerError: the SuperLink does not start, or runs and does not answer.
    """
    with sole_user(settings.state):
        authority = read_authority(settings.authority) if settings.authority else None
        with _superlink(settings.state, authority, stop) as link:
            run = _Run(settings, link, authority)
            if not stop.is_set():
                with _proxy(settings, authority, link.url) as proxy, _inference(settings, authority):
                    if _tend(run, proxy, stop):
                        return
            run.stopped()


def _tend(run: _Run, proxy: ProxyProcess, stop: threading.Event) -> bool:
    """Until ``stop`` is set, or the plan is done if it is to run once; whether it is that."""
    unanswered = 0
    while not stop.wait(TEND_SECONDS):
        _keep_alive(run.link, run, proxy, stop)
        if stop.is_set():  # while it waited for the SuperLink
            break
        proxy.reconcile()
        try:
            run.reconcile()
            unanswered = 0
        except FlowerError as error:
            unanswered += 1
            LOG.warning("event=superlink_silent times=%d reason=%s", unanswered, json.dumps(str(error)))
            if unanswered == MOST_UNANSWERED:
                raise
        if run.finished and run.settings.once:
            return True
    return False


@dataclass
class _Run:
    """The running plan: submitted, watched, submitted again."""

    settings: CoordinatorSettings
    link: SuperLink
    authority: Authority | None = None
    """As it was at the start."""
    run_id: int | None = None
    finished: bool = False
    failures: int = 0
    _looked: float = 0.0
    _warned_at: dict[str, float] = field(default_factory=dict)
    _tail: EventTail = field(init=False)

    def __post_init__(self) -> None:
        self._tail = EventTail(self.settings.state)

    def reconcile(self) -> None:
        """Call about once a second."""
        look = time.monotonic() - self._looked > LOOK_SECONDS
        if look:
            self._looked = time.monotonic()
            if self._devices_changed():
                self.finished = False
        if self.run_id is None:
            if not self.finished:
                self._submit()
            return
        # Asked before the events are read: a run that has ended by then has written its last event.
        status = self.link.status(self.run_id) if look else None
        for event in self._tail.new():
            if event["event"] == "visited":
                self.failures = 0
            if event["event"] == "all_served":
                LOG.info("event=all_served devices=%d", event["devices"])
                self.finished = True
            if event["event"] == "finished":
                LOG.info("event=run_finished run=%d", self.run_id)
                self.run_id, self.finished, self.failures = None, True, 0
                self._write_status("finished")
                return
            if event["event"] == "aborted":
                self._failed(str(event["reason"]))
                return
        if status is not None and status.finished:
            self._failed(f"Flower says {status}")

    def lost(self) -> None:
        """The SuperLink ended, and the ServerApp with it; this does not count as a failure of the run."""
        self.run_id = None

    def stopped(self) -> None:
        """The service was told to end."""
        self._write_status("stopped")

    def _submit(self) -> None:
        plan = read_plan(self.settings.state)
        if plan.clients == 0:
            self._write_status("waiting for the first node; issue one with: fedstill certs issue")
            return
        for run_id in self.link.stop_unfinished():
            LOG.info("event=run_stopped run=%d reason=left_by_an_earlier_coordinator", run_id)
        self._tail = EventTail(self.settings.state, from_end=True)
        self.run_id = self.link.submit(self.settings.app, {"run-dir": str(self.settings.state)})
        LOG.info("event=run_submitted run=%d clients=%d", self.run_id, plan.clients)
        self._write_status("running")

    def _devices_changed(self) -> bool:
        """Bring SuperLink and plan in line with the register of nodes."""
        if self.settings.authority is None:
            return False
        try:
            now = read_authority(self.settings.authority)
            self._warn((*now.warnings, *_not_shown_yet(self.authority, now)))
        except CredentialError as error:  # a certificate has expired, or is being replaced at this moment
            self._warn((str(error),))
        nodes = list_nodes(self.settings.authority)  # a revocation counts whatever else is wrong
        self.link.synchronise(nodes)
        known = {node.client: node for node in nodes if not node.revoked}
        clients = max((node.client for node in nodes), default=-1) + 1
        devices = tuple(known[client].name if client in known else "" for client in range(clients))
        tags = tuple(known[client].tags if client in known else () for client in range(clients))
        keys = tuple(
            tuple(node.fingerprint for node in nodes if node.client == client) for client in range(clients)
        )
        plan = read_plan(self.settings.state)
        same = (plan.devices, plan.tags, plan.keys) == (devices, tags, keys)
        if same or (self.run_id is not None and not plan.service):
            return False  # a study is finished with the devices that it began with
        write_plan(replace(plan, clients=clients, devices=devices, tags=tags, keys=keys))
        return plan.devices != devices

    def _warn(self, warnings: tuple[str, ...]) -> None:
        """Each once a day: keys that others may read, what expires soon, devices that follow no more."""
        now = time.time()
        self._warned_at = {text: at for text, at in self._warned_at.items() if now - at <= WARN_SECONDS}
        for warning in warnings:
            if warning not in self._warned_at:
                self._warned_at[warning] = now
                LOG.warning("event=credentials reason=%s", json.dumps(warning))

    def _failed(self, reason: str) -> None:
        self.run_id = None
        self.failures += 1
        LOG.error("event=run_failed failures=%d reason=%s", self.failures, json.dumps(reason))
        if self.failures >= self.settings.attempts:
            self._write_status(f"failed: {reason}")
            raise CoordinatorError(f"the run failed {self.failures} times in a row: {reason}")

    def _write_status(self, run: str) -> None:
        status = {"run": run, "failures": self.failures, "time": time.time()}
        replace_text(self.settings.state / STATUS_FILE, json.dumps(status))


def _not_shown_yet(started_with: Authority | None, now: Authority) -> tuple[str, ...]:
    """A warning, if the server's certificate was replaced since."""
    if started_with is None or started_with.certificate == now.certificate:
        return ()
    return (
        f"{now.certificate_file}: was replaced; start the coordinator again, which loses nothing, to show it",
    )


def _keep_alive(link: SuperLink, run: _Run, proxy: ProxyProcess, stop: threading.Event) -> None:
    code = link.poll()
    if code is None:
        return
    LOG.error("event=superlink_ended code=%d action=restart", code)
    run.lost()
    link.restart()
    if link.wait_until_healthy(stop=stop):
        proxy.follow()


@contextmanager
def _superlink(state: Path, authority: Authority | None, stop: threading.Event) -> Iterator[SuperLink]:
    link = SuperLink(state, authority.tls if authority else None)
    try:
        link.start()
        if link.wait_until_healthy(stop=stop) and authority is not None:
            link.synchronise(authority.nodes)  # before waiting devices can connect and are refused
        yield link
    finally:
        link.stop()


@contextmanager
def _inference(settings: CoordinatorSettings, authority: Authority | None) -> Iterator[None]:
    if not settings.inference_listen:
        yield
        return
    # Here, because they import torch, which a coordinator without this service need not wait for.
    from fedstill.cloud_server.coordinator.inference_thread import inference_serving
    from fedstill.cloud_server.edge_inference.heads import HEADS_FOLDER

    with inference_serving(settings.state / HEADS_FOLDER, settings.inference_listen, authority):
        yield


@contextmanager
def _proxy(
    settings: CoordinatorSettings, authority: Authority | None, upstream: str
) -> Iterator[ProxyProcess]:
    proxy = ProxyProcess(settings.state, settings.host, settings.port, upstream, authority)
    try:
        proxy.open()
        yield proxy
    finally:
        proxy.close()
