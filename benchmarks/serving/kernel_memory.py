"""What oneDNN keeps for the shapes that an elastic server meets: memory and time, for several numbers of kept kernels.

Every batch size at every schedule is a shape of its own for every layer, and oneDNN compiles each at first sight. Each
setting is a process of its own on one thread, which meets all shapes three times; the time is that of the last round.

    python benchmarks/serving/kernel_memory.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import cast

import timm
import torch
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.environment import kept_kernels, serving_environment
from fedstill.cloud_server.serving.engine.memory_limit import resident_bytes
from fedstill.common.provenance import cpu_model, hardware
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import parse_schedule
from fedstill.models.vit.task_bank import TaskParameters

SCHEDULES = "0,-5,-10,-15,-20"
KEPT = (1024, 4096, 65536)
ROUNDS = 3


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.model, options.batch, options.precisions, options.kept = "test_vit", 2, "fp32", [1024]
    if options.one:
        meet(options)
        return
    console = Console(highlight=False)
    console.print(
        f"{options.model}, schedules {SCHEDULES}, batches of 1 to {options.batch}, 1 thread, torch; "
        f"{hardware()}, {cpu_model()}, torch {torch.__version__}"
    )
    for precision in options.precisions.split(","):
        for kept in options.kept:
            command = [sys.executable, __file__, "--one", precision, "--model", options.model]
            subprocess.run(
                [*command, "--batch", str(options.batch)],
                env=serving_environment({**os.environ, **kept_kernels(kept)}) | {"OMP_NUM_THREADS": "1"},
                check=True,
            )


@torch.inference_mode()
def meet(options: argparse.Namespace) -> None:
    """What each process does."""
    trunk = cast(VisionTransformer, timm.create_model(options.model).eval().requires_grad_(False))
    net = ElasticViT(trunk)
    schedules = tuple(parse_schedule(name, net.layers) for name in SCHEDULES.split(","))
    head = TaskParameters(("a", "b"), torch.zeros(2, net.width), torch.zeros(2), {})
    settings = EngineSettings(schedules, (1, options.batch), "cpu", options.one, "torch")
    engine = Engine(net, {"a": head}, settings)
    engine.warm_up()
    before = resident_bytes()
    images = torch.zeros(options.batch, 3, net.image_size, net.image_size)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for schedule in schedules:
            for rows in range(1, options.batch + 1):
                engine.infer(images[:rows], ["a"] * rows, schedule)
        seconds = time.perf_counter() - began
    kept = os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]
    sys.stdout.write(
        f"{engine.variant}, {kept:>5} kernels kept: {before / 1e6:5.0f} MB at first, "
        f"{resident_bytes() / 1e6:5.0f} MB in the end, {seconds:5.1f} s\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test with a tiny random model")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="a timm name; weights are random")
    parser.add_argument("--batch", type=int, default=32, help="the largest")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--kept", type=int, nargs="+", default=list(KEPT))
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
