"""What a burst has left goes back to the system, but not so often that batches wait for their pages."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.engine.environment import serving_environment
from fedstill.cloud_server.serving.server.free_memory import LEAST_BYTES, PAUSE_SECONDS, FreeMemory

MIB = 2**20


class Process:
    def __init__(self) -> None:
        self.resident, self.used, self.now, self.trims = 1000 * MIB, 1000 * MIB, 0.0, list[float]()

    def trim(self) -> None:
        self.resident = self.used
        self.trims.append(self.now)

    def memory(self) -> FreeMemory:
        return FreeMemory(lambda: self.resident, self.trim, lambda: self.now)


def test_a_burst_is_forgotten_and_calm_traffic_is_left_alone() -> None:
    process = Process()
    memory = process.memory()
    for second in range(300):
        process.now = second
        process.resident = 3000 * MIB if second == 100 else process.resident + MIB // 10
        memory.give_back()
    assert process.trims == [0.0, 100.0], "what the start has left, and the burst"
    assert process.resident < 1100 * MIB


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 4000), st.integers(0, 4000)), max_size=30))
def test_from_any_past_it_trims_no_more_often_and_ends_near_what_is_used(
    past: list[tuple[float, int, int]],
) -> None:
    process = Process()
    memory = process.memory()
    for seconds, used, resident in past:
        process.now += seconds
        process.used, process.resident = used * MIB, max(used, resident) * MIB
        memory.give_back()
    process.used, process.resident = 500 * MIB, 5000 * MIB
    for _ in range(2):
        process.now += PAUSE_SECONDS
        memory.give_back()
    assert process.resident - process.used < max(LEAST_BYTES, 0.1 * process.resident)
    gaps = [later - sooner for sooner, later in zip(process.trims, process.trims[1:], strict=False)]
    assert min(gaps, default=PAUSE_SECONDS) >= PAUSE_SECONDS


PROGRAM = """
import numpy as np, psutil
from fedstill.cloud_server.serving.server.free_memory import trim_heap
mib = lambda: psutil.Process().memory_info().rss / 2**20
small = [np.ones(2**15) for _ in range(2000)]  # 500 MiB on the heap, then every second one freed, and the last kept
full = mib()
last = small[-1]
del small
kept = mib()
trim_heap()
print(full, kept, mib())
"""


def test_the_heap_of_a_process_with_the_engines_settings_is_trimmed() -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=serving_environment(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    full, kept, after = map(float, found.stdout.split())
    assert kept > full - 100, "the settings keep what is freed"
    assert after < kept - 350
