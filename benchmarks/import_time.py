"""How long the processes that start most often take: a device's ClientApp to import (once per message), and commands.

Each import runs in a process of its own. Every round measures an interpreter that imports nothing as well, and ratios
are of CPU time against that one, so that a busy neighbour slows both. "flwr" shows what of the ClientApp is Flower's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.console import Console

from fedstill.cloud_server.journal.journal import Journal
from fedstill.common.run_layout import JOURNAL_FILE, PLAN_FILE

PLAIN = "an interpreter alone"
PROCESSES = {
    PLAIN: "pass",
    "flwr, as a ClientApp needs it": "import flwr.app, flwr.clientapp",
    "ClientApp": "import fedstill.edge_client.node.client_app",
    "ClientApp that answers": "import fedstill.edge_client.node.client_app, fedstill.edge_client.node.device",
    "fedstill --help": "import sys; sys.argv[1:] = ['--help']; from fedstill.cli.start import main; main()",
}
STATUS = "import sys; sys.argv[1:] = ['status', '--state', {!r}]; from fedstill.cli.start import main; main()"
DEVICES = 30
"""Of the fleet whose status is asked."""
COUNT = "import atexit, sys; atexit.register(lambda: print('\\n' + str(len(sys.modules)))); "

Times = tuple[float, float]
"""Wall and CPU time of a process in seconds."""


def main(arguments: Sequence[str]) -> None:
    """Measure and print the medians."""
    options = _options(arguments)
    with TemporaryDirectory() as folder:
        _write_fleet(Path(folder))
        processes = {**PROCESSES, f"fedstill status, {DEVICES} devices": STATUS.format(folder)}
        modules = {name: _run(COUNT + script).splitlines()[-1] for name, script in processes.items()}
        times: dict[str, list[Times]] = {name: [] for name in processes}
        for _ in range(1 if options.quick else options.rounds):
            for name, script in processes.items():
                times[name].append(_times(script))
    console = Console(soft_wrap=True, highlight=False)
    for name, found in times.items():
        wall, cpu = (median(column) * 1e3 for column in zip(*found, strict=True))
        ratio = median(mine[1] / plain[1] for mine, plain in zip(found, times[PLAIN], strict=True))
        console.print(
            f"{name:<30} {wall:5.0f} ms, CPU {cpu:5.0f} ms, {modules[name]:>4} modules, ratio {ratio:5.1f}"
        )


def _write_fleet(state: Path) -> None:
    """A coordinator's folder whose devices have been online."""
    names = [f"device-{number}" for number in range(DEVICES)]
    plan = {"clients": DEVICES, "devices": names, "journal": "", "pause_scale": 1.0}
    (state / PLAN_FILE).write_text(json.dumps(plan))
    journal = Journal(f"sqlite:///{state / JOURNAL_FILE}")
    for client, name in enumerate(names):
        journal.see_node(client, str(client), name, "0.1.0", "connected")
    journal.close()


def _times(script: str) -> Times:
    begun, before = time.perf_counter(), _cpu_of_children()
    _run(script)
    return time.perf_counter() - begun, _cpu_of_children() - before


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(script: str) -> str:
    """What a process printed. The first time also warms the file cache."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
