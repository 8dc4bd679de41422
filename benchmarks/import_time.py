"""How long the processes that start most often take to import: a device's ClientApp (once per message) and the CLI.

Each import runs in a process of its own. Every round measures an interpreter that imports nothing as well, and ratios
are against that one, so that a busy neighbour slows both. "flwr" shows what of the ClientApp is Flower's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

from rich.console import Console

PLAIN = "an interpreter alone"
PROCESSES = {
    PLAIN: "pass",
    "flwr, as a ClientApp needs it": "import flwr.app, flwr.clientapp",
    "ClientApp": "import fedstill.edge_client.node.client_app",
    "ClientApp that answers": "import fedstill.edge_client.node.client_app, fedstill.edge_client.node.device",
    "fedstill --help": "import sys; sys.argv[1:] = ['--help']; from fedstill.cli.main import main; main()",
}
COUNT = "import atexit, json, sys; atexit.register(lambda: print('\\n' + json.dumps(len(sys.modules)))); "


def main(arguments: Sequence[str]) -> None:
    """Measure and print the medians."""
    options = _options(arguments)
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    modules = {
        name: _run(COUNT + script)[1] for name, script in PROCESSES.items()
    }  # warms the file cache, too
    for _ in range(1 if options.quick else options.rounds):
        for name, script in PROCESSES.items():
            seconds[name].append(_run(script)[0])
    console = Console(soft_wrap=True, highlight=False)
    for name, times in seconds.items():
        ratio = median(mine / plain for mine, plain in zip(times, seconds[PLAIN], strict=True))
        console.print(
            f"{name:<32} {median(times) * 1e3:6.0f} ms, {json.loads(modules[name]):5} modules, ratio {ratio:5.1f}"
        )


def _run(script: str) -> tuple[float, str]:
    """Wall time in seconds of a process, and the last line that it printed."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return time.perf_counter() - begun, (done.stdout.strip().splitlines() or [""])[-1]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
