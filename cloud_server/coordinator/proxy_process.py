"""The fleet proxy as a child of the coordinator: the only way by which devices reach the SuperLink."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from fedstill.cloud_server.auth.authority import Authority
from fedstill.cloud_server.coordinator.fleet_proxy import ProxySettings
from fedstill.cloud_server.coordinator.superlink import KILLED_STARTS
from fedstill.common.child_process import Child
from fedstill.common.flower_cli import FlowerError, environment
from fedstill.common.run_layout import TRAFFIC_FILE

LOG = logging.getLogger(__name__)

START_SECONDS = 60.0


class ProxyProcess:
    """Started, watched and started again on the same port."""

    def __init__(self, state: Path, host: str, port: int, upstream: str, authority: Authority | None) -> None:
        self._folder = (state / TRAFFIC_FILE).parent
        self._folder.mkdir(exist_ok=True)
        self._ready = self._folder / "ready.json"
        self._settings = ProxySettings(
            host=host,
            port=port,
            upstream=upstream,
            ca_file=str(authority.ca_file) if authority else "",
            certificate_file=str(authority.certificate_file) if authority else "",
            key_file=str(authority.key_file) if authority else "",
            ready_file=str(self._ready),
            traffic_file=str(state / TRAFFIC_FILE),
        )
        self._child = Child("proxy", self._folder)
        self._trusted = b""

    def open(self) -> None:
        """Start it and wait until it listens; one that is killed meanwhile is started again. Raises FlowerError if it
        does not."""
        self._ready.unlink(missing_ok=True)
        path = self._folder / "settings.json"
        path.write_text(json.dumps(asdict(self._settings)))
        self._trusted = self._authority()
        command = [sys.executable, "-m", "fedstill.cloud_server.coordinator.fleet_proxy", str(path)]
        self._child.start(command, environment(self._folder), self._folder)
        end, killed = time.monotonic() + START_SECONDS, 0
        while not self._ready.exists():
            code = self._child.poll()
            if code == -signal.SIGKILL and killed < KILLED_STARTS:
                killed += 1
                LOG.error("event=proxy_ended code=%d action=restart", code)
                self._ready.unlink(missing_ok=True)
                self._child.start(command, environment(self._folder), self._folder)
            elif code is not None or time.monotonic() > end:
                raise FlowerError(
                    f"the fleet proxy does not start: {self._child.log_tail()}; see {self._child.log_file}"
                )
            time.sleep(0.1)
        self._settings = replace(self._settings, port=json.loads(self._ready.read_text())["port"])
        LOG.info("event=fleet_open address=%s:%d", self._settings.host, self._settings.port)

    def reconcile(self) -> None:
        """Call about once a second: a proxy that ended is started again."""
        code = self._child.poll()
        if code is not None:
            LOG.error("event=proxy_ended code=%d action=restart", code)
            self.open()

    def follow(self) -> None:
        """After the SuperLink was started again, which may show a certificate of an authority that was rolled over."""
        if self._authority() != self._trusted:
            LOG.info("event=proxy_restarted reason=authority_changed")
            self.close()
            self.open()

    def _authority(self) -> bytes:
        return Path(self._settings.ca_file).read_bytes() if self._settings.ca_file else b""

    def close(self) -> None:
        """End it."""
        self._child.stop()
