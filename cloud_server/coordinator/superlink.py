"""One SuperLink under supervision: start, health, nodes, runs, end.

It listens on loopback only, always with a database (without one, a restart removes every node), and with node
authentication whenever there is TLS. It keeps the same port over restarts, because the proxy in front of it is
configured with that port.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedstill.cloud_server.auth.register import IssuedNode
from fedstill.cloud_server.coordinator.superlink_control import (
    FleetNode,
    RunState,
    SuperLinkControl,
    synchronise,
)
from fedstill.cloud_server.grpc.server_tls import ServerTls
from fedstill.common.child_process import Child
from fedstill.common.flower_cli import FlowerError, environment, flwr, free_port, tool

LOG = logging.getLogger(__name__)

CONNECTION = "fedstill"
START_SECONDS = 90.0
KILLED_STARTS = 3
"""Starts in a row that somebody may kill, as the system does for want of memory, before the coordinator gives up."""


class SuperLink:
    """The SuperLink as a child process, and the requests to it.

    Not for use by several threads at once.
    """

    def __init__(self, state_dir: Path, tls: ServerTls | None, port: int | None = None) -> None:
        self.folder = state_dir.resolve() / "superlink"
        self.home = self.folder / "home"
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._tls = tls
        self.port = port or free_port()
        self._child = Child("superlink", self.folder)
        self._environment = environment(self.home)
        self._control = self._connect()

    def _connect(self) -> SuperLinkControl:
        return SuperLinkControl(self.url, None if self._tls is None else self._tls.ca_file)

    @property
    def url(self) -> str:
        """The address that the proxy connects to."""
        return f"http{'' if self._tls is None else 's'}://127.0.0.1:{self.port}"

    @property
    def log_file(self) -> Path:
        """The log of the SuperLink and of the ServerApp below it."""
        return self._child.log_file

    @property
    def pid(self) -> int | None:
        """Of the SuperLink that was started last."""
        return self._child.pid

    def start(self) -> None:
        """Start it, after ending one that an earlier coordinator left on the same database; does not wait."""
        tls = [] if self._tls is None else [f'root-certificates = "{self._tls.ca_file.resolve()}"']
        lines = [
            f'[superlink]\ndefault = "{CONNECTION}"',
            f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{self.port}"',
            *(tls or ["insecure = true"]),
        ]
        self.home.joinpath("config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [
            tool("flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port),
            "--database", str(self.folder / "state.db"), "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        if self._tls is None:
            command.append("--insecure")
        else:
            command += [
                "--enable-supernode-auth",
                "--ssl-ca-certfile", str(self._tls.ca_file.resolve()),
                "--ssl-certfile", str(self._tls.certificate_file.resolve()),
                "--ssl-keyfile", str(self._tls.key_file.resolve()),
            ]  # fmt: skip
        self._child.start(command, self._environment, self.folder)

    def wait_until_healthy(self, seconds: float = START_SECONDS, stop: threading.Event | None = None) -> bool:
        """Wait until ``GET /health`` answers. One that is killed meanwhile is started again. False as soon as ``stop``
        is set.

        Raises:
            FlowerError: it ended by itself, or does not answer in time.
        """
        stop = stop or threading.Event()
        end, killed = time.monotonic() + seconds, 0
        while not self.healthy():
            status = self.poll()
            if status == -signal.SIGKILL and killed < KILLED_STARTS:
                killed += 1
                LOG.error("event=superlink_ended code=%d action=restart", status)
                self.restart()
            elif status is not None:
                said = self._child.log_tail()
                raise FlowerError(f"SuperLink ended with status {status}: {said}; see {self.log_file}")
            if time.monotonic() > end:
                raise FlowerError(f"SuperLink does not answer after {seconds:.0f} s; see {self.log_file}")
            if stop.wait(0.2):
                return False
        return True

    def healthy(self) -> bool:
        """Whether it answers now."""
        return self._control.healthy()

    def poll(self) -> int | None:
        """None while the process runs, then its exit status. Call it every few seconds: it also records the child
        processes."""
        return self._child.poll()

    def restart(self) -> None:
        """End its remaining processes and start it again on the same port and database; does not wait.

        Nodes reconnect by themselves. A run that was under way is lost: ``status`` says failed after
        about 60 s, and a new one is to be submitted.
        """
        self._child.stop()
        self._control.close()  # which trusts the authority of before, and it may have been rolled over
        self._control = self._connect()
        self.start()

    def stop(self) -> None:
        """End it, the ServerApp and all other processes below it."""
        self._control.close()
        self._child.stop()

    def synchronise(self, issued: Iterable[IssuedNode]) -> dict[str, int]:
        """Bring the SuperLink in line with the authority's register: add new nodes, remove revoked ones for ever.

        Idempotent, and only one request if nothing changed: to be called at start and every few seconds. A revoked
        node's SuperNode ends within 30 s. Returns the ids of the registered nodes, by name.

        Raises:
            FlowerError: the SuperLink does not answer or refuses.
        """
        return synchronise(self._control, issued)

    def nodes(self) -> tuple[FleetNode, ...]:
        """Every node that the SuperLink knows, unregistered ones too."""
        return self._control.nodes()

    def submit(self, app: Path, run_config: Mapping[str, str | int | float | bool] | None = None) -> int:
        """Start a run of the Flower app in the folder ``app``; its id.

        Raises:
            FlowerError: not accepted.
        """
        arguments = ["run", str(app), CONNECTION, "--format", "json"]
        if run_config:
            pairs = (f"{key}={_toml(value)}" for key, value in run_config.items())
            arguments += ["--run-config", " ".join(pairs)]
        said = flwr(arguments, self._environment)
        try:
            return int(json.loads(said)["run-id"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            raise FlowerError(f"flwr run answered without a run id; see {self.log_file}") from None

    def status(self, run_id: int) -> RunState:
        """Where a run stands.

        Raises:
            FlowerError: no such run.
        """
        return self._control.status(run_id)

    def stop_unfinished(self) -> tuple[int, ...]:
        """Stop every run that has not ended; which these were.

        Flower starts a run that waited when the SuperLink went down as soon as there is one again, so those that
        earlier coordinators submitted would all work at once. A ServerApp that works ends within about 30 s.

        Raises:
            FlowerError: the SuperLink does not answer, or one of them has ended meanwhile.
        """
        runs = self._control.unfinished()
        for run_id in runs:
            self._control.stop_run(run_id)
        return runs


def _toml(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if "'" in value or "\n" in value:
            raise FlowerError(
                f"{value!r}: a value of the run's configuration may hold no quote and no line break"
            )
        return f"'{value}'"
    return repr(value)
