"""A coordinator and two agents on loopback, with TLS and credentials; ends when both devices have their student."""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import fedstill
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

FEDSTILL = [sys.executable, "-P", "-m", "fedstill"]
DEVICES = ("kitchen", "hall")
AUDIO, FRAMES = AudioSpec(seconds=1.0, hop=512, mel_bins=32), FrameSpec(size=24)
"""As in fleet.toml."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def record_clips(folder: Path, device: int) -> SyntheticSource:
    """Stands in for a device's own recordings, which would be a manifest.csv."""
    source = SyntheticSource(
        seed=1 + device, public_per_class=1, private_per_class=6, frame_size=24, frame_count=1
    )
    private = [position for position, info in enumerate(source.index) if info.split == "private"]
    build_store(source, private, AUDIO, FRAMES, folder)
    return source


def start(stack: ExitStack, log: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """A ``fedstill`` process that does not outlive this script."""
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen([*FEDSTILL, *map(str, arguments)], stdout=output, stderr=output)
    stack.callback(stop, process)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """As systemd does."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait(120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    out = parser.parse_args().out.resolve()
    certs = out / "certs"
    subprocess.run([*FEDSTILL, "certs", "init", certs, "--host", "127.0.0.1"], check=True)
    for name in DEVICES:
        subprocess.run([*FEDSTILL, "certs", "issue", certs, name], check=True)
    sources = [record_clips(out / f"clips-{name}", device) for device, name in enumerate(DEVICES)]

    where, inference = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with ExitStack() as stack:
        coordinator = start(
            stack, out / "coordinator.log",
            "coordinator", "--experiment", Path(__file__).with_name("fleet.toml"), "--state", out / "coordinator",
            "--certs", certs, "--listen", where, "--inference-listen", inference, "--once",
        )  # fmt: skip
        for name in DEVICES:
            start(
                stack, out / f"{name}.log",
                "agent", "--coordinator", where, "--credentials", certs / "nodes" / name,
                "--data", out / f"clips-{name}", "--state", out / name,
            )  # fmt: skip
        print(f"{len(DEVICES)} devices are being personalised; see {out / 'coordinator.log'}")
        if coordinator.wait() != 0:
            sys.exit(f"the coordinator failed; see {out / 'coordinator.log'}")

    clip = sources[0].load(0)
    found = fedstill.load_student(out / DEVICES[0]).classify_clip(clip)
    print(f"the {DEVICES[0]} hears and sees: {found.label} ({found.probability:.0%})")


if __name__ == "__main__":
    main()
