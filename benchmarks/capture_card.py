"""What a capture card costs a device: time per clip beside the student's own forward pass, and bytes per round.

    python benchmarks/capture_card.py

The card is made with numpy on one core when a clip is stored. Beside it, in turns, the student of ``emotion_pairs``
answers the same clip with torch on one core, and the spectrogram is made that both sides need anyway.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console

from fedstill.common.provenance import hardware
from fedstill.datasets.audiovisual.capture_card import card_of, profile, to_bytes
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS
from fedstill.models.audiovisual.network import AudioVisualNet, NetworkSpec
from fedstill.models.vit.preprocess import to_tensors
from fedstill.protos.messages import Job, PrototypeUpload
from fedstill.protos.records import encode, payload_bytes
from fedstill.simulation.config import load_experiment

SECONDS, RATE = 3.5, 16_000
CLASSES = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    experiment = load_experiment("emotion_pairs")
    waveform = (0.1 * rng.standard_normal(round(SECONDS * RATE))).astype(np.float32)
    size = experiment.frames.size
    frames = rng.integers(0, 256, (1, 1, size, size), dtype=np.uint8)
    features = audio_features(waveform, RATE, experiment.audio)
    tensors = to_tensors(features[None], frames[None])
    spec = NetworkSpec(experiment.student.encoder, experiment.teacher.feature_width, 6, "concat", 1)
    student = AudioVisualNet(spec).eval()

    def answer() -> None:
        with torch.inference_mode():
            student(*tensors)

    milliseconds = interleaved(
        {
            "capture profile (numpy)": lambda: profile(waveform, RATE, RATE, frames),
            "spectrogram (numpy)": lambda: audio_features(waveform, RATE, experiment.audio),
            "student's forward pass (torch)": answer,
        },
        repeats,
    )
    console = Console(highlight=False)
    console.print(f"{SECONDS} s of sound at {RATE} Hz, one {size} x {size} picture; {hardware()}")
    for name, value in milliseconds.items():
        console.print(f"{name:32} {value:6.2f} ms a clip (median)")
    ratio = milliseconds["capture profile (numpy)"] / milliseconds["student's forward pass (torch)"]
    console.print(f"ratio to the forward pass {ratio:.2f}")
    values = CLASSES * 4 + CONFIDENCE_BINS * 4 + 8
    card = to_bytes(card_of(profile(waveform, RATE, RATE, frames)[None]))
    upload = PrototypeUpload(
        Job("latency_sensitive", "fedstill", 0, 0),
        np.full((1, CLASSES), 1 / CLASSES, np.float32),
        np.array([100]),
        tuple(f"class {number}" for number in range(CLASSES)),
        np.full(CONFIDENCE_BINS, 1 / CONFIDENCE_BINS, np.float32),
        card,
    )
    console.print(
        f"upload with {CLASSES} classes: card {card.nbytes} B and summary {values} B are {card.nbytes + values} B; "
        f"as it travels, with array headers and class names, {payload_bytes(encode(upload))} B"
    )


def interleaved(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each piece of work, the pieces in turn."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for one in work.values():
        one()  # caches
    for _ in range(repeats):
        for name, one in work.items():
            started = time.perf_counter()
            one()
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: float(np.median(values)) for name, values in taken.items()}


if __name__ == "__main__":
    main()
