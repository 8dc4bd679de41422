"""What a process imports before its work is known: seconds for everybody who waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("fedstill.simulation.launcher", "torch"),  # a user's mistake is found first
        ("fedstill.cloud_server.coordinator.coordinator", "torch"),  # only its inference service needs it
        ("fedstill.cli.start", "fedstill.cli.main"),  # all other commands
        ("fedstill.models.audiovisual.network", "torch._dynamo"),  # torch's compiler, as long as torch itself
    ],
)
def test_a_start_leaves_out_what_it_may_not_need(module: str, unwanted: str) -> None:
    program = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_status_leaves_out_all_other_commands(tmp_path: Path) -> None:
    """Also where it fails: an operator's scripts ask it every few seconds."""
    program = (
        "import sys; from fedstill.cli.start import main\n"
        "sys.argv[1:] = ['status', '--state', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        "print(code, *sorted({'fedstill.cli.main', 'fedstill.cli.data', 'numpy', 'rich.table'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, "not a coordinator's folder" in done.stderr) == ("2\n", True)


def test_the_start_knows_all_commands_and_names_them_alike() -> None:
    """What is started by itself says the same as beside the others."""
    for words in (["status", "--help"], ["status"], ["--version"], ["fleet", "--help"]):
        alone, beside = (
            subprocess.run(
                [sys.executable, "-c", f"from fedstill.cli.{module} import main; main()", *words],
                capture_output=True, text=True, check=False,
            )
            for module in ("start", "main")
        )  # fmt: skip
        assert (alone.stdout, alone.stderr, alone.returncode) == (
            beside.stdout,
            beside.stderr,
            beside.returncode,
        )
        assert alone.stdout or alone.stderr
