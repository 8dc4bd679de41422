"""``fedstill serve`` as a child process, for comparisons: started, awaited, kept on its cores, ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from fedstill.cloud_server.serving.engine.environment import serving_environment
from fedstill.cloud_server.serving.scheduling.profile import Profile, read_profile
from fedstill.common.child_process import Child
from fedstill.common.errors import DataError
from fedstill.common.flower_cli import tool

READY_SECONDS = 1800.0
"""The first start measures a profile."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server is started.

    state: folder of the task registry. arguments: further ones of ``fedstill serve``. cores: that it may use; None for
    all. threads: of each engine, by default one for each core.
    """

    state: Path
    arguments: tuple[str, ...] = ()
    cores: Sequence[int] | None = None
    threads: int | None = None


class ServedProcess:
    """``with ServedProcess(options, policy) as server``: plain text on a free port of loopback.

    Raises DataError, with the tail of the server's log, if it does not start.
    """

    def __init__(self, options: ServerOptions, policy: str) -> None:
        self._options, self._policy = options, policy
        self._child = Child(f"serve-{policy}", options.state)
        self._announcement = options.state / "serve" / "server.json"
        self.port = 0
        self.web_port = 0

    @property
    def target(self) -> str:
        """HOST:PORT of the protocol."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> ServedProcess:
        options = self._options
        self._announcement.unlink(missing_ok=True)
        environment = serving_environment(os.environ)
        if options.cores is not None:
            environment["OMP_NUM_THREADS"] = str(options.threads or len(options.cores))
        command = [tool("fedstill"), "serve", "--state", str(options.state.resolve()), "--insecure"]
        command += ["--listen", "127.0.0.1:0", "--web", "127.0.0.1:0", "--policy", self._policy]
        command += ["--lame-duck", "0"]  # nobody else asks it
        self._child.start([*command, *options.arguments], environment, Path.cwd())
        pid = self._child.pid
        if options.cores is not None and pid is not None:
            psutil.Process(pid).cpu_affinity(list(options.cores))  # threads that begin later inherit it
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()

    def profile(self) -> Profile:
        """The server's profile: the one in its state folder that was used last."""
        kept = sorted(
            (self._options.state / "serve").glob("profile-*.json"), key=lambda file: file.stat().st_mtime
        )
        if not kept:
            raise DataError(f"{self._options.state}: the server has left no profile")
        return read_profile(kept[-1])

    def _announced(self) -> dict[str, Any]:
        """What the server says of itself, if it says anything yet."""
        if not self._announcement.exists():
            return {"ready": False}
        found: dict[str, Any] = json.loads(self._announcement.read_text(encoding="utf-8"))
        return found

    def _wait(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while not (told := self._announced())["ready"]:
            if self._child.poll() is not None or time.monotonic() > end:
                words = self._child.log_tail()
                self._child.stop()
                raise DataError(f"fedstill serve --policy {self._policy} does not come up: {words}")
            time.sleep(0.05)
        self.port, self.web_port = told["port"], told["web_port"]
