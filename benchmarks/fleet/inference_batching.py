"""Micro-batching of the cloud's heads against one product per clip: clips of 200 devices at once, same answers.

Both ways take turns, medians are compared, and the benchmark ends with an error if the answers differ.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from fedstill.cloud_server.edge_inference.heads import Heads, HeadStore, save_heads
from fedstill.cloud_server.edge_inference.micro_batching import Batching, MicroBatcher
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.models.audiovisual.fusion import Fusion
from fedstill.models.audiovisual.network import AudioVisualNet, NetworkSpec
from fedstill.protos.features import FeatureVectors

WIDTH, CLASSES = 512, 6
FUSIONS: tuple[Fusion, ...] = ("concat", "gated")
PLAIN = Batching(window_seconds=0.0, largest=1, waiting=100_000)
BATCHED = Batching(waiting=100_000)
TOLERANCE = 1e-5


def main(arguments: Sequence[str]) -> None:
    """Measure; raises SystemExit if the answers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clips, once")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    devices, repeats = (20, 1) if options.quick else (200, options.repeats)
    random = np.random.default_rng(0)
    clips = [FeatureVectors(*random.normal(size=(2, WIDTH)).astype(np.float32)) for _ in range(devices)]
    console = Console(soft_wrap=True, highlight=False)
    for fusion in FUSIONS:
        console.print(compare(fusion, clips, repeats))


def compare(fusion: Fusion, clips: Sequence[FeatureVectors], repeats: int) -> str:
    """One line: milliseconds until all clips are answered (medians, measured in turn), and their ratio."""
    heads = made_heads(fusion)
    plain, batched = [], []
    for _ in range(repeats):
        seconds, one_by_one = asyncio.run(answer_all(heads, clips, PLAIN))
        plain.append(seconds)
        seconds, together = asyncio.run(answer_all(heads, clips, BATCHED))
        batched.append(seconds)
        if not np.allclose(one_by_one, together, atol=TOLERANCE):
            raise SystemExit(f"{fusion}: a batch is answered differently than its clips one by one")
    return (
        f"{fusion:<7} {len(clips)} clips: one by one {1000 * median(plain):.1f} ms, "
        f"batched {1000 * median(batched):.1f} ms, ratio {median(plain) / median(batched):.1f}, same answers"
    )


async def answer_all(
    heads: Heads, clips: Sequence[FeatureVectors], batching: Batching
) -> tuple[float, npt.NDArray[np.float32]]:
    """Seconds, and float32 (clips, classes)."""
    batcher = MicroBatcher(batching)
    batcher.start()
    started = time.perf_counter()
    rows = await asyncio.gather(*(batcher.classify(heads, 1.0, clip) for clip in clips))
    seconds = time.perf_counter() - started
    await batcher.stop()
    return seconds, np.stack(rows)


def made_heads(fusion: Fusion) -> Heads:
    """The heads of a student with random weights."""
    spec = NetworkSpec(EncoderSpec("resnet10", 2), WIDTH, CLASSES, fusion)
    net = AudioVisualNet(spec, torch.Generator().manual_seed(0)).eval()
    with tempfile.TemporaryDirectory() as folder:
        names = tuple(f"class {number}" for number in range(CLASSES))
        save_heads(Path(folder), "made", net, {}, names)
        return HeadStore(Path(folder)).get("made")


if __name__ == "__main__":
    main(sys.argv[1:])
