"""What a capture card costs a device: time per clip beside the student's own forward pass, and bytes per round.

    python benchmarks/students/capture_card.py

The card is made with numpy on one core when a clip is stored. Beside it, in turns, the student of ``emotion_pairs``
answers the same clip with torch on one core, and the spectrogram is made that both sides need anyway. The bytes are
those of the reply's content as Flower serialises it, which the traffic ledger counts, then the requests that carry it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console

from fedstill.common.provenance import hardware
from fedstill.datasets.audiovisual.capture_card import card_of, profile, to_bytes
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS
from fedstill.models.audiovisual.network import AudioVisualNet, NetworkSpec
from fedstill.models.vit.preprocess import to_tensors
from fedstill.protos.messages import Job, PrototypeUpload
from fedstill.protos.packed_upload import pack_upload
from fedstill.protos.records import encode, payload_bytes, plain_records
from fedstill.simulation.config import load_experiment

SECONDS, RATE = 3.5, 16_000
CLASSES = 32
IDENTITY = 2**63 + 1
"""A run's or a node's, as large as Flower draws them."""


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
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{SECONDS} s of sound at {RATE} Hz, one {size} x {size} picture; {hardware()}")
    for name, value in milliseconds.items():
        console.print(f"{name:32} {value:6.2f} ms a clip (median)")
    ratio = milliseconds["capture profile (numpy)"] / milliseconds["student's forward pass (torch)"]
    console.print(f"ratio to the forward pass {ratio:.2f}")
    card = to_bytes(card_of(profile(waveform, RATE, RATE, frames)[None]))
    upload = PrototypeUpload(
        Job("latency_sensitive", "fedstill", 0, 0),
        np.full((1, CLASSES), 1 / CLASSES, np.float32),
        np.array([100]),
        tuple(f"class {number}" for number in range(CLASSES)),
        np.full(CONFIDENCE_BINS, 1 / CONFIDENCE_BINS, np.float32),
        card,
    )
    values, content = len(pack_upload(upload)), encode(upload)
    requests = carried(content)
    console.print(
        f"upload with {CLASSES} classes: {values} B of values, {card.nbytes} B of them the card; as Flower serialises "
        f"them {payload_bytes(content)} B (one record per array: {payload_bytes(plain_records(upload))} B)\n"
        f"Flower's {len(requests)} requests with the message around it: {sum(requests)} B, "
        f"{sum(requests) - payload_bytes(content)} B of them Flower's own"
    )


def carried(content: RecordDict) -> list[int]:
    """Bytes of each request by which a SuperNode sends a reply: one announces it, one per object brings it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = IDENTITY, IDENTITY, 1
    reply = Message(content, reply_to=Message(RecordDict(), IDENTITY, "query.prototypes"))
    parts, node = get_all_nested_objects(reply), Node(node_id=IDENTITY)
    announced = PushMessagesRequest(
        node=node,
        messages_list=[message_to_proto(remove_content_from_message(reply))],
        message_object_trees=[get_object_tree(reply)],
        clientapp_runtime_list=[1.0],
    )
    pushed = [
        PushObjectRequest(node=node, run_id=IDENTITY, object_id=name, object_content=part.deflate())
        for name, part in parts.items()
    ]
    return [announced.ByteSize(), *(one.ByteSize() for one in pushed)]


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
