"""How much faster is a training step with the channels last than in torch's usual layout? Medians of interleaved steps.

    python benchmarks/students/training_layout.py

The networks and clips are as large as those of emotion_pairs: students are 8 wide, teachers 24.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from statistics import median

import torch
from rich.console import Console

from fedstill.cloud_server.distillation.compute import Compute, trained, use_threads
from fedstill.common.provenance import cpu_model
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.specs import EncoderSpec, NetworkSpec

WIDTHS = (8, 16, 24)
CLASSES, FEATURES, BATCH = 6, 192, 64


def step(net: AudioVisualNet, audio: torch.Tensor, frames: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    started = time.perf_counter()
    net.zero_grad()
    net(audio, frames).joint.square().mean().backward()
    return time.perf_counter() - started


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=9, help="of each layout (default 9)")
    options = parser.parse_args(arguments)
    use_threads(1)
    console, generator = Console(soft_wrap=True, highlight=False), torch.Generator().manual_seed(0)
    audio = torch.randn(BATCH, 1, 64, 157, generator=generator)
    frames = torch.randn(BATCH, 1, 1, 48, 48, generator=generator)
    console.print(f"{cpu_model()}, one thread, batches of {BATCH}")
    for width in WIDTHS:
        spec = NetworkSpec(EncoderSpec("resnet18", width), FEATURES, CLASSES, "concat", 1)
        plain, fast = (AudioVisualNet(spec, torch.Generator().manual_seed(1)) for _ in range(2))
        networks = {"usual": trained(plain).train(), "last": Compute("cpu", "fp32").to_train(fast).train()}
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(options.steps):
            for name, net in networks.items():
                seconds[name].append(step(net, audio, frames))
        usual, last = (1000 * median(seconds[name]) for name in ("usual", "last"))
        console.print(f"width {width}: {usual:.0f} ms, channels last {last:.0f} ms, ratio {usual / last:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
