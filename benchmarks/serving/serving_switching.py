"""The cost of a busy event loop for the engine's thread, at several switch intervals of the interpreter.

Every operator of a forward pass releases the interpreter lock and takes it back. Another thread that is busy in Python
keeps it for up to a switch interval each time. Rounds are interleaved; medians.

    python benchmarks/serving/serving_switching.py
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from typing import cast

import timm
import torch
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer

from fedstill.common.provenance import hardware
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import constant_schedule

ARCHITECTURE, TOKEN_DELTA = "vit_tiny_patch16_224", -10
INTERVALS = (5e-3, 1e-3, 1e-4, 2e-5)
ROUNDS = 5


def main() -> None:
    torch.set_num_threads(1)
    net = ElasticViT(cast(VisionTransformer, timm.create_model(ARCHITECTURE).eval().requires_grad_(False)))
    schedule, images = constant_schedule(TOKEN_DELTA, net.layers), torch.zeros(1, 3, 224, 224)

    @torch.inference_mode()
    def forward() -> float:
        started = time.perf_counter()
        net.features(images, schedule)
        return 1e3 * (time.perf_counter() - started)

    forward()
    alone = statistics.median(forward() for _ in range(ROUNDS))
    leave = threading.Event()
    other = threading.Thread(target=busy, args=(leave,))
    other.start()
    found: dict[float, list[float]] = {interval: [] for interval in INTERVALS}
    before = sys.getswitchinterval()
    try:
        for _ in range(ROUNDS):
            for interval, times in found.items():
                sys.setswitchinterval(interval)
                times.append(forward())
    finally:
        sys.setswitchinterval(before)
        leave.set()
        other.join()
    console = Console(highlight=False)
    console.print(f"{ARCHITECTURE}, one image, {schedule.name}, 1 thread; {hardware()}")
    console.print(f"alone {alone:8.1f} ms")
    for interval, times in found.items():
        slower = statistics.median(times)
        console.print(
            f"beside a busy thread, {1e6 * interval:5.0f} us: {slower:8.1f} ms, x{slower / alone:.1f}"
        )


def busy(leave: threading.Event) -> None:
    """Python and nothing else."""
    while not leave.is_set():
        sum(range(200))


if __name__ == "__main__":
    main()
