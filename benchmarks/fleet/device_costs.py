"""What fedstill costs a device that is not at work: its install, its memory, and what it sends and receives.

A coordinator and one agent are real processes with TLS on loopback, with Flower's own waits. The agent reaches both
ports of the coordinator through relays, which count what passes, with TLS, and the packets. The agent may come from
another environment than this one (``--device``), such as one with nothing but the extra [edge].

    python benchmarks/fleet/device_costs.py --device /opt/fedstill --idle 20 -- --contact-every 5

Options behind ``--`` go to ``fedstill agent``.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import soundfile
from PIL import Image
from rich.console import Console

from fedstill.cloud_server.auth.authority import create_authority, issue_node
from fedstill.cloud_server.journal.fleet_state import read_fleet
from fedstill.common.child_process import end, family
from fedstill.common.flower_cli import free_port
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

sys.path.insert(0, str(Path(__file__).parent))
from installed import installed_lines
from memory import MemoryWatch
from relay import Relay, Traffic

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "examples" / "fleet_on_one_machine" / "fleet.toml"
AUDIO, FRAMES = AudioSpec(seconds=1.0, hop=512, mel_bins=32), FrameSpec(size=24)
"""As in the experiment."""
NAME = "hall"
DAY = 86_400
SETTLED = 60.0
"""Seconds from the device's student to the first idle one: what belongs to the visit is over then."""
PATIENCE = 600.0
LONGEST_WAIT = 7200.0
STATUS_TURNS = 5
MB = 1e6
CONTACT_OVER = "event=contact_over"
"""In the agent's log: with --contact-every it ends its node."""


class Fleet:
    """A coordinator and one agent, each with its words in a file of ``folder``; a context manager."""

    def __init__(self, folder: Path, device: Path, options: Sequence[str]) -> None:
        self.folder, self._device, self._options = folder, device, options
        self.state = folder / "coordinator"
        self._stack = ExitStack()

    def __enter__(self) -> Fleet:
        create_authority(self.folder / "certs")
        issue_node(self.folder / "certs", NAME)
        source = SyntheticSource(public_per_class=1, private_per_class=6, frame_size=24, frame_count=1)
        own = [position for position, info in enumerate(source.index) if info.split == "private"]
        build_store(source, own, AUDIO, FRAMES, self.folder / "clips")
        ports = free_port(), free_port()
        self._start(
            "coordinator", Path(sys.prefix), "coordinator", "--experiment", str(EXPERIMENT),
            "--state", str(self.state), "--certs", str(self.folder / "certs"),
            "--listen", f"127.0.0.1:{ports[0]}", "--inference-listen", f"127.0.0.1:{ports[1]}",
        )  # fmt: skip
        self.flower, self.inference = (
            self._stack.enter_context(Relay(("127.0.0.1", port))) for port in ports
        )
        return self

    def start_agent(self) -> int:
        """Its pid."""
        (self.folder / "inbox").mkdir()
        return self._start(
            "agent", self._device, "agent", "--coordinator", f"127.0.0.1:{self.flower.port}",
            "--inference", f"127.0.0.1:{self.inference.port}", "--watch", str(self.folder / "inbox"),
            "--credentials", str(self.folder / "certs" / "nodes" / NAME),
            "--data", str(self.folder / "clips"), "--state", str(self.folder / "agent"), *self._options,
        )  # fmt: skip

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def served(self) -> bool:
        """Whether the device has its student."""
        if not (self.state / "plan.json").exists():
            return False
        return any(
            (device["visit"] or {}).get("outcome") == "served" for device in read_fleet(self.state)["devices"]
        )

    def classify(self) -> None:
        """Put a clip into the watched folder and wait for its answer: the stream to the cloud's heads stands then."""
        soundfile.write(
            self.folder / "inbox" / "clip.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000
        )
        Image.new("RGB", (24, 24), "grey").save(self.folder / "inbox" / "clip.png")
        begun = time.monotonic()
        while '"class"' not in self.said("agent"):
            if time.monotonic() - begun > PATIENCE:
                sys.exit(f"no answer:\n{self.said('agent')[-2000:]}")
            time.sleep(0.1)

    def end_of_contact(self) -> None:
        """With pauses between contacts, wait until one begins, so that what is measured are whole contacts."""
        before, begun = self.said("agent").count(CONTACT_OVER), time.monotonic()
        while "--contact-every" in self._options and self.said("agent").count(CONTACT_OVER) == before:
            if time.monotonic() - begun > LONGEST_WAIT:
                sys.exit(f"no contact ends:\n{self.said('agent')[-2000:]}")
            time.sleep(0.5)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, environment: Path, *arguments: str) -> int:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("wb"))
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if environment == Path(sys.prefix):
            variables["PYTHONPATH"] = str(ROOT / "importroot")
        process = subprocess.Popen(
            [environment / "bin" / "python", "-P", "-m", "fedstill", *arguments], stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, env=variables, start_new_session=True,
        )  # fmt: skip
        self._stack.callback(process.wait)
        self._stack.callback(lambda: end(family(psutil.Process(process.pid))))
        return process.pid


def main(arguments: Sequence[str]) -> None:
    """Print the figures."""
    options = _options(arguments)
    console = Console(soft_wrap=True, highlight=False)
    for line in installed_lines(options.device):
        console.print(line)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Fleet(Path(scratch), options.device, options.agent) as fleet,
    ):
        begun = time.monotonic()
        memory = MemoryWatch(fleet.start_agent())
        with memory:
            while not fleet.served():
                if time.monotonic() - begun > PATIENCE:
                    sys.exit(
                        f"no student:\n{fleet.said('coordinator')[-2000:]}\n{fleet.said('agent')[-2000:]}"
                    )
                time.sleep(0.1)
            console.print(f"first student after {time.monotonic() - begun:.0f} s, its training included")
            fleet.classify()
            most = memory.most
            time.sleep(min(SETTLED, 60 * options.idle))
            fleet.end_of_contact()
            memory.forget()
            idle_from = time.monotonic()
            before, contacts = _traffic(fleet), fleet.said("agent").count(CONTACT_OVER)
            time.sleep(60 * options.idle)
            fleet.end_of_contact()
            after, idle = _traffic(fleet), time.monotonic() - idle_from
            standing = memory.found
        console.print(
            f"memory (PSS) of the agent and all below it: {median(standing) / MB:.0f} MB at rest (median; "
            f"{max(standing) / MB:.0f} MB at most), {most / MB:.0f} MB at most until then"
        )
        for process, size in memory.of_each():
            console.print(f"  {size / MB:5.1f} MB  {process}")
        for name, one, other in zip(("Flower's link", "inference link"), before, after, strict=True):
            console.print(_per_day(name, other - one, idle))
        contacts = fleet.said("agent").count(CONTACT_OVER) - contacts
        if contacts:
            console.print(_per_contact(after[0] - before[0], contacts))
        console.print(f"fedstill status: {_status_seconds(fleet.state):.2f} s of processor time (median)")


def _traffic(fleet: Fleet) -> tuple[Traffic, Traffic]:
    return fleet.flower.traffic(), fleet.inference.traffic()


def _per_day(name: str, spent: Traffic, seconds: float) -> str:
    day = DAY / seconds
    return (
        f"{name}, idle for {seconds / 60:.0f} min: {spent.connections * day:.0f} connections, "
        f"{spent.payload * day / MB:.2f} MB of TLS and {spent.bytes * day / MB:.2f} MB of IP packets a day"
    )


def _per_contact(spent: Traffic, contacts: int) -> str:
    each = spent.bytes / contacts
    days = ", ".join(f"every {60 // often} min {24 * often * each / MB:.2f} MB" for often in (4, 2, 1))
    return f"{contacts} contacts of {each / 1e3:.1f} kB of IP packets; so a day costs with one {days}"


def _status_seconds(state: Path) -> float:
    found = []
    for _ in range(STATUS_TURNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-P", "-m", "fedstill", "status", "--state", str(state)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return median(found)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=Path, default=Path(sys.prefix), help="the agent's environment")
    parser.add_argument("--idle", type=float, default=20.0, help="minutes")
    parser.add_argument("--quick", action="store_true", help="idle for two seconds")
    parser.add_argument("agent", nargs="*", help="options of fedstill agent")
    options = parser.parse_args(arguments)
    if options.quick:
        options.idle = 2 / 60
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
