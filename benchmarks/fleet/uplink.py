"""The wire cost of a device's upload: prototypes of every kind, beside the raw features of the same clips.

Raw features are uploaded by feature-sharing schemes: both modalities' vectors as plain fp32, without any header. The
uploads are the messages of the protocol as Flower serialises them, with its headers and ids. Probabilities are random
(Dirichlet, as peaked as a student's); the bytes depend on their number only. "15 rounds" is Algorithm 7 as printed: an
upload per outer round, compared with features that would travel only once.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from rich.console import Console

from fedstill.datasets.audiovisual.capture_card import CARD_SIZE, card_of, to_bytes
from fedstill.edge_client.privacy.private_prototypes import private_prototypes
from fedstill.edge_client.privacy.prototypes import Prototypes, summarise
from fedstill.models.audiovisual.levels import Precision, compressed_payload_bytes
from fedstill.protos.messages import Job, PrototypeRequest, PrototypeUpload, Student
from fedstill.protos.records import encode, payload_bytes

GOAL, ROUNDS = 50, 15
SETTINGS = {
    "emotion_pairs (6 classes, features of 192)": (6, 192),
    "CREMA-D as in the thesis (6 classes, features of 512)": (6, 512),
    "AVE as in the thesis (28 classes, features of 512)": (28, 512),
}
KINDS = {
    "thesis (kmeans, n / 3)": "kmeans",
    "constrained (at least 8)": "constrained",
    "dp (epsilon 4, 8 cells)": "dp",
    "fedstill (row and card)": "histogram",
}


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=264, help="of the device (default 264)")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    for setting, (classes, width) in SETTINGS.items():
        raw = options.clips * compressed_payload_bytes(width, 1.0, Precision.FP32)
        console.print(f"{setting}: {options.clips} clips, raw features {raw / 1e3:.0f} kB")
        for name, kind in KINDS.items():
            size = upload_bytes(kind, options.clips, classes)
            verdict = "meets" if size * GOAL <= raw else "misses"
            console.print(
                f"  {name:<26} {size:7d} bytes, ratio 1/{raw / size:.0f} ({verdict} 1/{GOAL}); "
                f"{ROUNDS} rounds 1/{raw / (ROUNDS * size):.0f}"
            )


def upload_bytes(kind: str, clips: int, classes: int) -> int:
    """Of one upload, as the traffic ledger counts it."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(classes, 0.3), clips).astype(np.float32)
    names = tuple(f"class {place}" for place in range(classes))
    job = Job("latency_insensitive", "uplink", 0, 0)
    private = kind == "dp"
    request = PrototypeRequest(
        job=job,
        student=Student(np.empty(0, np.uint8), "{}", names, "0" * 64, "0" * 64),
        kind=kind,
        samples_per_prototype=8 if kind == "constrained" else 3,
        min_size=8,
        upload_limit=0,
        temperature=1.0,
        epsilon=4.0 if private else 0.0,
        delta=1e-5 if private else 0.0,
        centres=rng.dirichlet(np.ones(classes), 8).astype(np.float32)
        if private
        else np.empty((0, 0), np.float32),
    )
    made: Prototypes = (
        private_prototypes(probabilities, request, rng) if private else summarise(probabilities, request, 0)
    )
    card = to_bytes(card_of(np.zeros((1, CARD_SIZE), np.float32))) if kind == "histogram" else made.card
    upload = PrototypeUpload(job, made.probabilities, made.counts, names, made.confidence, card)
    return payload_bytes(encode(upload))


if __name__ == "__main__":
    main(sys.argv[1:])
