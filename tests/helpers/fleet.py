"""A real fleet on loopback for end-to-end tests: one coordinator, some agents, each a process that can be killed.

Every process that a test starts is ended by its pid, and so is whatever that process left behind.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedstill.cloud_server.auth.authority import create_authority, issue_node
from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.cloud_server.journal.journal import open_journal
from fedstill.common.child_process import end, family
from fedstill.common.flower_cli import free_port, tool
from fedstill.edge_client.folder import EXPORT_FOLDER
from helpers.quick import quick_environment

PATIENCE = 420.0


@dataclass
class Service:
    """One ``fedstill`` process; its words are in ``log``. ``stock``: Flower waits as long as it does for users."""

    command: Sequence[str]
    log: Path
    stock: bool = False
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start it, or start it again after it has ended."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [tool("fedstill"), *self.command], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=quick_environment(self.stock), start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """As the power button does: only this process, at once."""
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout: float = 60.0) -> int:
        """As systemd does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def ended(self, timeout: float = PATIENCE) -> int:
        """Wait for the end; the exit code. Without an end it fails, with the last words of all logs of the fleet."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            logs = sorted(self.log.parent.rglob("*.log"))
            said = "\n".join(f"== {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)
            raise AssertionError(f"{self.log.stem} did not end within {timeout:.0f} s\n{said}") from None

    def said(self) -> str:
        """All of its log."""
        return self.log.read_text(errors="replace")

    def children(self, name: str) -> list[psutil.Process]:
        """Processes below it whose command line holds ``name``."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if any(name in part for part in process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@dataclass
class Fleet:
    """Use as a context manager.

    Attributes:
        folder: of the test; ``co`` and ``agent0`` ... lie below it.
        devices: the clip store of each client.
        experiment: TOML file.
        export: of a student of the experiment's kind; agents that have it work without torch, so several times faster.
        with_torch: the clients that do not get it.
        stock: Flower waits as long as it does for users.
        inference: the coordinator classifies clips, too, for which it needs torch.
    """

    folder: Path
    experiment: Path
    devices: Sequence[Path]
    options: Sequence[str] = ()
    export: Path | None = None
    with_torch: Collection[int] = ()
    stock: bool = False
    inference: bool = False
    services: list[Service] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    inference_port: int = field(default_factory=free_port)

    def __enter__(self) -> Fleet:
        self.certs = self.folder / "ca"
        create_authority(self.certs)
        for client in range(len(self.devices)):
            issue_node(self.certs, self.name(client))
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services:
            if service.process.poll() is None:
                end(family(psutil.Process(service.process.pid)))
                service.process.wait()
        for path in self.folder.rglob("*.pid"):
            _end_leftover(path)

    @property
    def state(self) -> Path:
        return self.folder / "co"

    @staticmethod
    def name(client: int) -> str:
        return f"device-{client}"

    def coordinator(self, *options: str, once: bool = True, tag: str = "") -> Service:
        """Start the coordinator; with ``once`` it ends by itself when every device is served."""
        command = [
            "coordinator", "--state", str(self.state), "--experiment", str(self.experiment),
            "--certs", str(self.certs), "--listen", f"127.0.0.1:{self.port}",
            "--inference-listen", f"127.0.0.1:{self.inference_port}" if self.inference else "",
            *(["--once"] if once else []), *self.options, *options,
        ]  # fmt: skip
        return self._started(f"coordinator{tag}", command)

    def agent(
        self, client: int, *options: str, port: int = 0, state: Path | None = None, tag: str = ""
    ) -> Service:
        """Start the agent of one client."""
        if client not in self.with_torch:
            self.equip(state or self.agent_state(client))
        command = [
            "agent", "--coordinator", f"127.0.0.1:{port or self.port}",
            "--credentials", str(self.certs / "nodes" / self.name(client)), "--data", str(self.devices[client]),
            "--state", str(state or self.agent_state(client)), "--allow", "samples", *options,
        ]  # fmt: skip
        return self._started(f"agent{client}{tag}", command)

    def start(self, name: str, *command: str) -> Service:
        """Any other ``fedstill`` process of this fleet."""
        return self._started(name, command)

    def agent_state(self, client: int) -> Path:
        return self.folder / f"agent{client}"

    def equip(self, state: Path) -> None:
        """Put the exported student into a device's folder, once."""
        if self.export is not None and not (state / EXPORT_FOLDER).exists():
            shutil.copytree(self.export, state / EXPORT_FOLDER)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.state) if event["event"] == kind]

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Wait until ``condition()`` holds; fails with the log tails of all processes if it does not in time."""
        limit = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > limit:
                said = "\n".join(f"== {one.log.name}\n{one.said()[-2000:]}" for one in self.services)
                raise AssertionError(f"{what} did not happen within {timeout:.0f} s\n{said}")
            time.sleep(0.25)  # each look opens a journal, or walks through all processes

    def uploads(self) -> list[tuple[str, int, int]]:
        """(job, round, client) of every accepted upload."""
        if not (self.state / "plan.json").exists():
            return []
        journal = open_journal(self.state, read_plan(self.state).journal)
        try:
            return journal.uploaded()
        finally:
            journal.close()

    def _started(self, name: str, command: Sequence[str]) -> Service:
        service = Service(command, self.folder / f"{name}.log", self.stock)
        self.services.append(service)
        return service


def _end_leftover(pid_file: Path) -> None:
    left = json.loads(pid_file.read_text())
    try:
        process = psutil.Process(int(left["pid"]))
    except psutil.NoSuchProcess:
        return
    if process.create_time() == left["started"]:
        end(family(process))
