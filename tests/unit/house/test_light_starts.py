"""What a process imports before its work is known: seconds for everybody who waits for it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("fedstill.simulation.launcher", "torch"),  # a user's mistake is found first
        ("fedstill.cloud_server.coordinator.coordinator", "torch"),  # only its inference service needs it
        ("fedstill.models.audiovisual.network", "torch._dynamo"),  # torch's compiler, as long as torch itself
    ],
)
def test_a_start_leaves_out_what_it_may_not_need(module: str, unwanted: str) -> None:
    program = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
