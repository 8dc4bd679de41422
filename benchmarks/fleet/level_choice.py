"""Does the choice of the compression level keep its guarantee on a bad link? With TLS and a throttled proxy.

The proxy follows ``traces/link.csv``: 20 Mbit/s, 1 Mbit/s, 64 kbit/s, an outage, a recovery, all with jitter (made up,
not taken from a real network; one row per second: bytes per second and one-way delay, 0 is an outage). The benchmark
ends with an error if less than 99 % of the clips are answered within the objective or locally, or if two changes of the
level are less than 5 s apart.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from fedstill.edge_client.inference.cloud_connection import CloudConnection
from fedstill.edge_client.inference.cloud_inference import Classification, EdgeInference
from fedstill.edge_client.inference.cloud_stream import Address

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers import inference as fakes
from helpers import link

TRACE = Path(__file__).parent / "traces" / "link.csv"
OBJECTIVE_MS = 300.0
WANTED = 0.99
DWELL = 5.0
JITTER = 0.05
ENCODERS = 0.03  # s per clip, what a small device's encoders take


@dataclass(frozen=True)
class Moment:
    """One second of the trace; 0 bytes per second is an outage. ``delay`` is one way, in seconds."""

    segment: str
    bytes_per_second: float
    delay: float


@dataclass
class Tally:
    """What happened to the clips."""

    objective_ms: float = OBJECTIVE_MS
    clips: list[tuple[float, str, Classification]] = field(default_factory=list)

    def add(self, when: float, segment: str, answer: Classification) -> None:
        """``when`` in seconds since the start."""
        self.clips.append((when, segment, answer))

    @property
    def kept(self) -> float:
        """Share of clips answered within the objective or locally."""
        return float(np.mean([one.route.path == "local" or self._in_time(one) for _, _, one in self.clips]))

    @property
    def in_time(self) -> float:
        """Share of clips answered within the objective, local answers included."""
        return float(np.mean([self._in_time(one) for _, _, one in self.clips]))

    @property
    def changes(self) -> list[float]:
        """When a clip went at another level than the previous one that went to the cloud."""
        sent = [
            (when, answer.route.level_name) for when, _, answer in self.clips if answer.route.path == "cloud"
        ]
        return [when for (_, before), (when, level) in itertools.pairwise(sent) if before != level]

    @property
    def most_changes(self) -> int:
        """The most level changes in any window of 5 s (less what a clip may start early or late)."""
        window = DWELL - JITTER
        return max(
            (sum(start <= one < start + window for one in self.changes) for start in self.changes), default=0
        )

    def lines(self) -> list[str]:
        """The report."""
        milliseconds = [answer.milliseconds for _, _, answer in self.clips]
        head = (
            f"{len(self.clips)} clips: {self.kept:.2%} within {self.objective_ms:g} ms or local "
            f"(wanted {WANTED:.0%}), {self.in_time:.2%} within it on either path; "
            f"p50 {np.percentile(milliseconds, 50):.0f} ms, p99 {np.percentile(milliseconds, 99):.0f} ms; "
            f"{len(self.changes)} level changes, at most {self.most_changes} in {DWELL:g} s, "
            f"at {', '.join(f'{when:.2f}' for when in self.changes)} s"
        )
        by_segment = {
            segment: Counter(
                a.route.level_name or f"local: {a.route.reason}"
                for _, found, a in self.clips
                if found == segment
            )
            for segment in dict.fromkeys(segment for _, segment, _ in self.clips)
        }
        return [head] + [
            f"  {segment:<10} " + ", ".join(f"{count} x {name}" for name, count in counts.most_common())
            for segment, counts in by_segment.items()
        ]

    def _in_time(self, answer: Classification) -> bool:
        return answer.milliseconds <= self.objective_ms


def read_trace(path: Path, delay_ms: float = 40.0) -> list[Moment]:
    """One moment per second: of a CSV as ours, or of a log whose lines are a time and Mbit/s, one after a second.

    The second is how recordings of 3G links on trams and metros are commonly passed on (Riiser et al., MMSys 2013).
    They hold no delays: ``delay_ms`` is taken for those.
    """
    if path.suffix == ".log":
        rates = [float(line.split()[1]) for line in path.read_text().splitlines() if line.strip()]
        return [Moment(path.stem[:10], 1e6 / 8 * rate, delay_ms / 1000) for rate in rates]
    with path.open(newline="") as file:
        return [
            Moment(row["segment"], float(row["bytes_per_second"]), float(row["delay_ms"]) / 1000)
            for row in csv.DictReader(file)
        ]


def shortened(trace: Sequence[Moment], seconds: int) -> list[Moment]:
    """The first seconds of each segment."""
    groups = itertools.groupby(trace, key=lambda moment: moment.segment)
    return [moment for _, group in groups for moment in itertools.islice(group, seconds)]


def measure(trace: Sequence[Moment], clips_per_second: float) -> Tally:
    """Drive one device through the trace in real time."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        heads = fakes.made_heads(Path(folder) / "heads")
        certificates = fakes.made_certificates(Path(folder) / "certificates")
        process, port = fakes.start_cloud(heads, certificates)
        try:
            first = trace[0]
            with link.ThrottledProxy(("127.0.0.1", port), first.bytes_per_second, first.delay) as proxy:
                authority = (certificates / "ca.crt").read_bytes()
                token = fakes.token("node-0")
                address = Address(f"127.0.0.1:{proxy.port}", "node-0", token, authority)
                _drive(proxy, address, trace, clips_per_second, tally)
        finally:
            process.terminate()
            process.wait(30)
    return tally


def _drive(
    proxy: link.ThrottledProxy,
    address: Address,
    trace: Sequence[Moment],
    clips_per_second: float,
    tally: Tally,
) -> None:
    runtime = fakes.MadeRuntime(ENCODERS)
    connection = CloudConnection(address, runtime.version, runtime.class_names)
    connection.start()
    inference = EdgeInference(runtime, connection, "auto", OBJECTIVE_MS)
    started = time.monotonic()
    following = threading.Thread(target=_follow, args=(proxy, trace, started), daemon=True)
    following.start()
    for number in itertools.count():
        time.sleep(max(0.0, started + number / clips_per_second - time.monotonic()))
        when = time.monotonic() - started
        if when >= len(trace):
            break
        answer = inference.classify(fakes.AUDIO, fakes.FRAMES)
        tally.add(when, trace[int(when)].segment, answer)
    following.join()
    connection.close()


def _follow(proxy: link.ThrottledProxy, trace: Sequence[Moment], started: float) -> None:
    for second, moment in enumerate(trace):
        time.sleep(max(0.0, started + second - time.monotonic()))
        if moment.bytes_per_second:
            proxy.shape(moment.bytes_per_second, moment.delay)
            proxy.restore()
        else:
            proxy.stall()
    proxy.restore()


def main(arguments: Sequence[str]) -> None:
    """Measure; raises SystemExit if the guarantee is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seconds of each segment")
    parser.add_argument("--trace", type=Path, default=TRACE, help="CSV as traces/link.csv, or a log")
    parser.add_argument("--delay-ms", type=float, default=40.0, help="one way, of a log (default 40)")
    parser.add_argument("--clips-per-second", type=float, default=3.0)
    options = parser.parse_args(arguments)
    trace = read_trace(options.trace, options.delay_ms)
    tally = measure(shortened(trace, 2) if options.quick else trace, options.clips_per_second)
    console = Console(soft_wrap=True, highlight=False)
    for line in tally.lines():
        console.print(line)
    if options.quick:
        console.print("too short for a verdict")
        return
    if tally.kept < WANTED:
        raise SystemExit(f"only {tally.kept:.2%} of the clips were answered within the objective or locally")
    if tally.most_changes > 1:
        raise SystemExit(f"{tally.most_changes} level changes within {DWELL:g} s")


if __name__ == "__main__":
    main(sys.argv[1:])
