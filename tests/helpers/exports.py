"""An exported student with its clips, small enough to be made in every test session."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.export.students import export_student
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import ClipStore, build_store, open_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.edge_client.folder import EXPORT_FOLDER
from fedstill.models.audiovisual.compression import CompressionNet
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.specs import EncoderSpec, Fusion, NetworkSpec
from fedstill.models.vit.preprocess import to_tensors
from fedstill.models.weights.checkpoint import CheckpointMeta, save_checkpoint, save_levels

AUDIO, FRAMES = AudioSpec(seconds=0.6, hop=512, mel_bins=32), FrameSpec(size=24)


@dataclass(frozen=True)
class Exported:
    """A student three ways: the network, its checkpoint and its export."""

    net: AudioVisualNet
    store: ClipStore
    stem: Path
    folder: Path
    levels: dict[float, CompressionNet]


def settled_network(spec: NetworkSpec, store: ClipStore, seed: int) -> AudioVisualNet:
    """A network whose batch norms have met the clips, so that no two of its tensors are equal any more."""
    generator = torch.Generator().manual_seed(seed)
    net = AudioVisualNet(spec, generator).train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for _ in range(20):
            net(*to_tensors(store.audio, store.frames))
    return net.eval()


def make_export(folder: Path, *, fusion: Fusion = "concat", int8: bool = True) -> Exported:
    """Public and private synthetic clips, a student, two compression levels, and their export."""
    source = SyntheticSource(public_per_class=4, private_per_class=4, frame_size=24, frame_count=1)
    store = build_store(source, range(len(source.index)), AUDIO, FRAMES, folder / "store")
    spec = NetworkSpec(EncoderSpec("resnet10", 8, "compact"), 32, len(store.class_names), fusion, 1)
    net = settled_network(spec, store, seed=1)
    stem = folder / "students" / "mine"
    save_checkpoint(stem, net, CheckpointMeta(spec, store.class_names, asdict(AUDIO), asdict(FRAMES)))
    levels = {rate: CompressionNet(32, len(store.class_names), rate).eval() for rate in (1.5, 3.0)}
    save_levels(stem, levels)
    export_student(stem, folder / "onnx", store=store, int8=int8)
    return Exported(net, store, stem, folder / "onnx", levels)


def export_to_devices(run_dir: Path, clients: Iterable[int]) -> None:
    """Let these devices of a prepared run work without torch, which a simulation and a fleet then do alike.

    A last digit, in which the two libraries differ, may move a clip between two clusters.
    """
    metrics = Metrics(run_dir)
    _ = SeedCloud(read_plan(run_dir), 0, metrics).all_distill
    metrics.close()
    for client in clients:
        folder = run_dir / "devices" / str(client) / EXPORT_FOLDER
        export_student(run_dir / "seed0" / "all_distill", folder, store=open_store(run_dir / "public"))
