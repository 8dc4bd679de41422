"""The proxy as a child of the coordinator: started, waited for, restarted on the same port, ended."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from fedstill.cloud_server.child import Child
from fedstill.cloud_server.fleet_proxy import ProxySettings
from fedstill.cloud_server.flower_tools import FlowerError
from fedstill.protos.plain import to_plain

START_SECONDS = 60.0


class FleetDoor:
    """``python -m fedstill.cloud_server.fleet_proxy`` under supervision; its files lie in ``state_dir/door``."""

    def __init__(self, state_dir: Path, settings: ProxySettings) -> None:
        self.folder = state_dir.resolve() / "door"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ready_file = self.folder / "ready.json"
        self.traffic_file = self.folder / "traffic.json"
        """For ``traffic.read_traffic``; is brought up to date every 2 s."""
        self._settings = replace(
            settings, ready_file=str(self._ready_file), traffic_file=str(self.traffic_file)
        )
        self._child = Child("proxy", self.folder)

    @property
    def log_file(self) -> Path:
        """The proxy's own words."""
        return self._child.log_file

    @property
    def pid(self) -> int | None:
        """Of the proxy that was started last."""
        return self._child.pid

    def start(self) -> None:
        """Start it, after ending one that an earlier coordinator left; does not wait."""
        self._ready_file.unlink(missing_ok=True)
        file = self.folder / "settings.json"
        file.write_text(json.dumps(to_plain(self._settings), indent=2), encoding="utf-8")
        command = [sys.executable, "-m", "fedstill.cloud_server.fleet_proxy", str(file)]
        self._child.start(command, dict(os.environ), self.folder)

    def wait_until_open(self, seconds: float = START_SECONDS) -> int:
        """Until it listens; on which port, which is kept over restarts.

        Raises:
            FlowerError: it ended (the address is taken, say), or does not listen in time.
        """
        end = time.monotonic() + seconds
        while not self._ready_file.exists():
            status = self.poll()
            if status is not None:
                said = self._child.last_words()
                raise FlowerError(f"proxy ended with status {status}: {said}; see {self.log_file}")
            if time.monotonic() > end:
                raise FlowerError(f"proxy does not listen after {seconds:.0f} s; see {self.log_file}")
            time.sleep(0.05)
        port = int(json.loads(self._ready_file.read_bytes())["port"])
        self._settings = replace(self._settings, port=port)
        return port

    def poll(self) -> int | None:
        """None while it runs, then its exit status."""
        return self._child.poll()

    def restart(self) -> None:
        """End what is left of it and start it again on the same port; does not wait."""
        self._child.stop()
        self.start()

    def stop(self) -> None:
        """Let it finish what is under way (10 s at most), then end it."""
        self._child.stop()
