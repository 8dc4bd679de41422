"""The processes of the month: a coordinator, agents, their links. What ends is started again, as by systemd."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import soundfile
from PIL import Image

from fedstill.cloud_server.auth.authority import (
    create_authority,
    issue_node,
    renew_server,
    renew_token,
    revoke_node,
)
from fedstill.common.atomic_files import replace_text
from fedstill.common.child_process import end, family
from fedstill.common.flower_cli import free_port
from fedstill.datasets.audiovisual.capture.captured import captured_clip
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.clip import Clip
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.edge_client.privacy.privacy_policy import POLICY_FILE

sys.path.insert(0, str(Path(__file__).parent))
from relay import Relay

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "month_hook"
EXPERIMENT = ROOT / "examples" / "fleet_on_one_machine" / "fleet.toml"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
"""Debian's package faketime."""
COLUMNS = ("clip_id", "split", "speaker", "label", "audio", "frames")
OTHER = Condition("other microphone", "development", sound=(("white_noise", 1.5), ("low_pass", 1.0)))
RESTART_SECONDS = 5.0
OWNERS_POLICY = '{"yearly": null}'
"""By default a device tells of its clips 52 times in 365 days, a week apart after the third time: a few days of a month
in fast motion have more changes than that."""
CONNECTED = 5
"""One device of so many stays connected."""
FIRST_CLIPS, NEW_SHARE, DRIFT_CLIPS, MOST_CLIPS = 32, 0.4, 12, 60
"""Of a device: at first; new ones, as a share of those before; with another microphone; then the oldest are deleted."""


class Service:
    """One ``fedstill`` process, which is started again when it has ended; its words are in a file.

    Attributes:
        wanted: whether it is to run.
        ends: how it ended by itself: time, exit code and last line.
        kills: of the harness.
    """

    def __init__(self, log: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.log, self.command, self.environment = log, list(command), dict(environment)
        self.wanted, self.kills, self.starts = False, 0, 0
        self.ends: list[tuple[float, int, str]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._again = 0.0

    @property
    def pid(self) -> int | None:
        """None if it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Now, and after each end."""
        self.wanted = True
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedstill", *self.command], stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, env=self.environment, start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    def keep(self) -> None:
        """Call about once a second."""
        if not self.wanted:
            return
        if self._process is not None and (code := self._process.poll()) is not None:
            if code != -signal.SIGKILL:
                self.ends.append((time.time(), code, self.last_line()))
            self._process, self._again = None, time.monotonic() + RESTART_SECONDS
        if self._process is None and time.monotonic() >= self._again:
            self.start()

    def kill(self) -> None:
        """As a failing power supply does; it is started again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.kills += 1

    def ask(self) -> None:
        """To end for good, once."""
        if self.wanted and self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)
        self.wanted = False

    def stop(self, seconds: float = 90.0) -> None:
        """As systemd does, for good; after ``seconds`` it is killed, which counts as an end by itself."""
        self.ask()
        if self._process is None or self._process.poll() == -signal.SIGKILL:
            return
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            end(family(psutil.Process(self._process.pid)))
            code = self._process.wait()
        if code not in (0, -signal.SIGTERM):  # the signal itself ends one that still starts
            self.ends.append((time.time(), code, f"on SIGTERM: {self.last_line()}"))
        self._process = None

    def said(self) -> str:
        """All of its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def last_line(self) -> str:
        """Of its log."""
        return (self.said().strip().splitlines() or ["it said nothing"])[-1]


@dataclass
class Device:
    """One client: its agent, its clips, its link, its clock.

    Attributes:
        causes: what the month gave the cloud a reason to serve it for: (time, kind of event).
        here: whether it is to be in the fleet.
        cut, wrong_clock: what is the matter with it now.
    """

    client: int
    folder: Path
    cable: Relay
    name: str = ""
    state: Path = Path()
    agent: Service | None = None
    here: bool = False
    cut: bool = False
    wrong_clock: bool = False
    other_microphone: bool = False
    recorded: int = 0
    causes: list[tuple[float, str]] = field(default_factory=list)
    past_agents: list[Service] = field(default_factory=list)

    @property
    def clips(self) -> Path:
        return self.folder / "clips"

    @property
    def clock(self) -> Path:
        """The file that moves its clock."""
        return self.folder / "clock"

    def node(self) -> psutil.Process | None:
        """Its SuperNode, if it runs."""
        return child(self.state / "supernode.pid")

    def record(self, count: int) -> None:
        """So many more clips; the manifest is replaced at once."""
        self.clips.mkdir(exist_ok=True, parents=True)
        source = SyntheticSource(
            self.client, public_per_class=0, private_per_class=200, frame_size=24, frame_count=1
        )
        manifest, rows = self.clips / "manifest.csv", []
        if manifest.exists():
            with manifest.open(encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
        for number in range(self.recorded, self.recorded + count):
            clip = source.load(number)
            taken = captured_clip(clip, OTHER, self.client) if self.other_microphone else clip
            _write(self.clips / f"{number:04d}", taken)
            sound, picture = f"{number:04d}.wav", f"{number:04d}.png"
            rows.append([f"{number:04d}", "private", clip.info.speaker, "", sound, picture])
        self.recorded += count
        rows = rows[-MOST_CLIPS:]
        replace_text(manifest, "".join(",".join(row) + "\n" for row in [list(COLUMNS), *rows]))

    def drift(self) -> None:
        """Some more clips, with the other microphone from now on."""
        self.other_microphone = not self.other_microphone
        self.record(DRIFT_CLIPS)

    def record_new(self) -> None:
        """Enough to be a change by their number."""
        with (self.clips / "manifest.csv").open(encoding="utf-8") as file:
            self.record(math.ceil(NEW_SHARE * (sum(1 for _ in file) - 1)))


class Fleet:
    """All of it; a context manager, after which nothing runs any more.

    Args:
        folder: a new one.
        scale: of the timers of our own.
        contact_every: seconds between two contacts of most devices; one of ``CONNECTED`` stays connected.
    """

    def __init__(self, folder: Path, agents: int, scale: float, contact_every: float) -> None:
        self.folder, self.scale, self.contact_every = folder, scale, contact_every
        self.certs, self.state = folder / "certs", folder / "cloud"
        self.version = [0, 1, 0]
        self.port = free_port()
        self.has_clocks = FAKETIME.exists()
        self._count, self._stack = agents, ExitStack()
        self.killed: Counter[str] = Counter()

    def __enter__(self) -> Fleet:
        create_authority(self.certs)
        self.devices = [
            Device(
                client,
                self.folder / f"device{client}",
                self._stack.enter_context(Relay(("127.0.0.1", self.port))),
            )
            for client in range(self._count)
        ]
        self.coordinator = Service(
            self.folder / "coordinator.log",
            [
                "coordinator", "--state", str(self.state), "--experiment", str(EXPERIMENT),
                "--set", "dataset.public_per_class=24", "--certs", str(self.certs),
                "--listen", f"127.0.0.1:{self.port}", "--inference-listen", "",
            ],
            self.environment(),
        )  # fmt: skip
        self.coordinator.start()
        return self

    def __exit__(self, *_: object) -> None:
        services = [one for device in self.devices for one in [*device.past_agents, device.agent] if one]
        for service in [*services, self.coordinator]:
            service.ask()
        for service in [*services, self.coordinator]:
            service.stop()
        for path in self.folder.rglob("*.pid"):
            if (left := child(path)) is not None:
                end(family(left))
        self._stack.close()

    def environment(self, device: Device | None = None) -> dict[str, str]:
        """Of the cloud's processes, or of one device's."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        variables |= {
            "PYTHONPATH": os.pathsep.join([str(HOOK), str(ROOT / "importroot")]),
            "MONTH_SCALE": repr(self.scale),
            "MONTH_VERSION": ".".join(map(str, self.version)),
            "OMP_NUM_THREADS": "1",
            "KMP_BLOCKTIME": "0",
        }
        if device is not None:
            variables["MONTH_DEVICE"] = "1"
        if device is not None and self.has_clocks:
            variables |= {
                "MONTH_CLOCK": "1", "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(device.clock),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DISABLE_SHM": "1",
                "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # with it, every wait for a lock is a busy one
            }  # fmt: skip
        return variables

    def keep(self) -> None:
        """Start again what has ended; call about once a second."""
        self.coordinator.keep()
        for device in self.devices:
            if device.agent is not None:
                device.agent.keep()

    # What happens to devices.

    def join(self, device: Device) -> None:
        """A new one with credentials and clips, or one that was away."""
        device.here = True
        if not device.name:
            device.folder.mkdir()
            self.set_clock(device, 0.0)
            device.record(FIRST_CLIPS)
            self._enrol(device, f"device-{device.client}")
        self._start(device)

    def leave(self, device: Device) -> None:
        """Its agent ends as systemd would end it; for good, unless it joins again."""
        device.here = False
        if device.agent is not None:
            device.agent.stop()

    def new_card(self, device: Device) -> None:
        """The power fails, and the agent's folder is empty when it is back."""
        self._pull_the_plug(device)
        while device.state.exists():  # what was killed may write its last file now
            shutil.rmtree(device.state, ignore_errors=True)
        self._start(device)

    def replace(self, device: Device, number: int) -> None:
        """Another device with other credentials in its place, and nothing but its clips."""
        self._pull_the_plug(device)
        revoke_node(self.certs, device.name)
        self._enrol(device, f"device-{device.client}-{number}")
        self._start(device)

    def set_clock(self, device: Device, seconds: float) -> None:
        """How far its clock is ahead."""
        device.wrong_clock = bool(seconds)
        replace_text(device.clock, f"{seconds:+.0f}")

    def renew_token(self, device: Device) -> None:
        """In the place where the running agent reads it."""
        renew_token(self.certs, device.name)

    def _enrol(self, device: Device, name: str) -> None:
        issue_node(self.certs, name, device.client)
        device.name, device.state = name, device.folder / name

    def _start(self, device: Device) -> None:
        if device.agent is not None:
            device.past_agents.append(device.agent)
        rare = device.client % CONNECTED > 0 and self.contact_every
        device.state.mkdir(exist_ok=True)
        replace_text(device.state / POLICY_FILE, OWNERS_POLICY)
        command = [
            "agent", "--coordinator", f"127.0.0.1:{device.cable.port}", "--data", str(device.clips),
            "--credentials", str(self.certs / "nodes" / device.name), "--state", str(device.state),
            *(["--contact-every", repr(self.contact_every / 60)] if rare else []),
        ]  # fmt: skip
        device.agent = Service(device.folder / "agent.log", command, self.environment(device))
        device.agent.start()

    def _pull_the_plug(self, device: Device) -> None:
        """Everything of it ends at once."""
        assert device.agent is not None
        device.agent.wanted = False
        if device.agent.pid is not None:
            below = family(psutil.Process(device.agent.pid))
            device.agent.kill()
            _kill(below)
        for name in ("supernode", "warm_start"):  # of an agent that was killed before
            if (left := child(device.state / f"{name}.pid")) is not None:
                _kill(family(left))

    # What happens to the cloud.

    def cloud(self) -> dict[str, psutil.Process | None]:
        """Its processes, None for one that does not run."""
        head = self.coordinator.pid
        superlink = child(self.state / "superlink" / "superlink.pid")
        found: dict[str, psutil.Process | None] = {
            "coordinator": None if head is None else psutil.Process(head),
            "SuperLink": superlink,
            "fleet proxy": child(self.state / "proxy" / "proxy.pid"),
            "ServerApp": None,
        }
        with suppress(psutil.Error):
            for process in superlink.children(recursive=True) if superlink else ():
                with suppress(psutil.Error):
                    if any("flwr-serverapp" in part for part in process.cmdline()[:3]):
                        found["ServerApp"] = process
        return found

    def upgrade(self) -> None:
        """The coordinator stops and comes back with the next version; devices take it when they start again."""
        self.version = [0, 2, 0] if self.version[1] == 1 else [0, 2, self.version[2] + 1]
        self.restart_coordinator()

    def new_server_certificate(self) -> None:
        """Its operator does as the command says: he restarts the coordinator."""
        renew_server(self.certs)
        self.restart_coordinator()

    def restart_coordinator(self) -> None:
        """As ``systemctl restart``."""
        self.coordinator.stop()
        self.coordinator.environment = self.environment()
        self.coordinator.start()


def child(pid_file: Path) -> psutil.Process | None:
    """The process of which this file tells, if it is alive."""
    try:
        left = json.loads(pid_file.read_bytes())
        process = psutil.Process(int(left["pid"]))
        alive = process.create_time() == left["started"] and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, TypeError, KeyError, psutil.Error):
        return None
    return process if alive else None


def _write(stem: Path, clip: Clip) -> None:
    soundfile.write(stem.with_suffix(".wav"), clip.audio, clip.sample_rate)
    Image.fromarray(clip.frames[0]).save(stem.with_suffix(".png"))


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
