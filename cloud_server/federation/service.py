"""A fleet's service: every device gets its student as soon as it is there, and again when it needs one. It never ends.

No device waits for another. What is due follows from the journal and from what a device says of itself when it comes
online, so a cloud that was restarted goes on where it was. ``visit.py`` says when a device is due.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from fedstill.cloud_server.distillation.compute import use_threads
from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.federation.cohorts import open_cohorts
from fedstill.cloud_server.federation.device_line import DeviceLine
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.cloud_server.federation.jobs import PersonalisationJob
from fedstill.cloud_server.federation.node_registry import NodeRegistry
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.slots import ComputeSlots, Stopped
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal
from fedstill.cloud_server.journal.visit import DONE, FAILED, KEPT, REFUSED, SERVED, Seen, Visit, due
from fedstill.common.run_layout import PLAN_FILE

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
HELLO_PAUSE = 3600.0
"""Seconds after which a device that stays online is asked again whether it has changed."""
MOST_AT_A_TIME = 32
"""Devices that are served at the same time; most of them wait for their device, the others for a compute slot."""


class FleetService:
    """Serves the devices of one plan.

    Args:
        cloud: with the models that all devices share already made.
    """

    def __init__(
        self, cloud: SeedCloud, exchange: Exchange, registry: NodeRegistry, journal: Journal, metrics: Metrics
    ) -> None:
        self._cloud, self._exchange, self._registry = cloud, exchange, registry
        self._journal, self._metrics = journal, metrics
        self._plan_file = Path(cloud.plan.work) / PLAN_FILE
        self._plan_time = 0
        self._plan = cloud.plan
        self._teacher = (
            cloud.plan.teacher_number
        )  # its models are the loaded ones, whatever the plan says later
        self._slots, self._cohorts = ComputeSlots(cloud.plan.compute.workers), open_cohorts(cloud)
        self._pool = ThreadPoolExecutor(MOST_AT_A_TIME, thread_name_prefix="visit")
        self._busy: set[int] = set()
        self._whole = False

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. A look that fails, as while a database restarts, is made again."""
        trouble = ""
        try:
            while not stop.is_set():
                try:
                    self.look()
                    trouble = ""
                except Exception as error:
                    if trouble != (trouble := repr(error)):  # the same one is told once
                        log.exception("a look at the fleet failed, and is repeated")
                stop.wait(LOOK_SECONDS)
        finally:
            self.close()

    def close(self) -> None:
        """End visits where they wait, and begin no further one; what was begun goes on next time."""
        self._slots.stop()
        self._pool.shutdown(cancel_futures=True)

    def look(self) -> None:
        """Begin the visits that are due now."""
        self._follow_plan()
        busy = set(
            self._busy
        )  # before the journal is read: a visit that ends meanwhile is looked at next time
        visits, asked, now = self._journal.visits.newest(), self._journal.visits.asked(), time.time()
        present = self._registry.present()
        self._registry.ask_again(present.keys() - busy, HELLO_PAUSE * self._plan.pause_scale)
        for client, hello in present.items():
            if client in busy or client >= self._plan.clients:
                continue
            seen = Seen(self._name_of(client), hello.student, hello.change)
            visit = due(
                visits.get(client),
                seen,
                asked.get(client, 0.0),
                now,
                self._plan.pause_scale,
                self._plan.every,
                self._teacher,
            )
            if visit is not None:
                self._busy.add(client)
                self._pool.submit(self._visit, replace(visit, client=client))
        self._report(visits)

    def _follow_plan(self) -> None:
        changed = self._plan_file.stat().st_mtime_ns
        if changed != self._plan_time:
            self._plan_time, self._plan = changed, read_plan(self._plan_file.parent)
            self._registry.follow(self._plan.clients, self._plan.devices)

    def _name_of(self, client: int) -> str:
        return self._plan.devices[client] if self._plan.devices else ""

    def _report(self, visits: dict[int, Visit]) -> None:
        """Say once that every device of the plan has what it should have."""
        names = self._plan.devices or [""] * self._plan.clients
        wanted = [client for client, name in enumerate(names) if name or not self._plan.devices]
        whole = bool(wanted) and not self._busy
        whole = whole and all(
            one in visits and visits[one].outcome in DONE and visits[one].teacher == self._teacher
            for one in wanted
        )
        if whole and not self._whole:
            self._metrics.emit("all_served", devices=len(wanted))
        self._whole = whole

    def _visit(self, visit: Visit) -> None:
        """One attempt; whatever goes wrong with one device, the others go on."""
        use_threads(1)
        try:
            begun = self._journal.visits.begin(visit)
            self._metrics.emit("visit", client=visit.client, visit=visit.visit, cause=visit.cause)
            telling = self._registry.begun(visit.client)
            try:
                outcome, reason, student = self._attempt(begun)
            except Stopped:
                return
            except Exception as error:
                log.exception("visit of client %d", visit.client)
                if not self._exchange.is_open():  # no fault of the device's: it goes on where it was
                    return
                outcome, reason, student = FAILED, f"{type(error).__name__}: {error}", visit.student
            told = telling is not None and not telling.cancel()  # it would have the device wait for nothing
            late = telling is not None and telling.running()
            ended = self._journal.visits.end(begun, outcome, reason, student)
            if outcome == KEPT or (told and outcome == REFUSED) or (late and outcome == SERVED):
                self._registry.settled(visit.client)
            again = ended.next_attempt(self._plan.pause_scale)
            self._metrics.emit(
                "visited", client=visit.client, visit=visit.visit, outcome=outcome, reason=reason, student=student,
                teacher=visit.teacher, next_attempt=again,
            )  # fmt: skip
        except Exception:  # the journal cannot be written; the next look tries again
            log.exception("visit of client %d: nothing can be noted", visit.client)
        finally:
            self._busy.discard(visit.client)

    def _attempt(self, visit: Visit) -> tuple[str, str, str]:
        """(outcome, reason, version in use)."""
        client, plan = visit.client, self._cloud.plan
        key = JobKey(plan.scenarios[0], plan.arms[0], client, self._cloud.seed, visit=visit.visit)
        line = DeviceLine(self._exchange, self._registry, client, plan.reply_timeout)
        job = PersonalisationJob(key, self._cloud, line, self._journal, self._slots, self._cohorts)
        record = job.run()
        student = str(record.install.get("current", ""))
        if student:
            self._registry.uses(client, student)
        if not student and line.hello is not None:
            student = line.hello.student
        if job.progress.failures:
            return FAILED, job.progress.failures[-1], student
        kept = bool(record.install.get("kept"))
        if not kept and not record.install.get("installed"):
            return REFUSED, str(record.install.get("reason", "")), student
        self._metrics.emit("job", **record.as_event())
        return (KEPT, str(record.install["reason"]), student) if kept else (SERVED, "", student)
