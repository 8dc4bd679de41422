"""The public bank: the teacher's features and logits of every public clip, computed once per teacher and kept.

Algorithm 7 as printed asks the teacher again in every outer round (line 5) and for every batch (Eq. 5.4). Its outputs
never change. So they are stored as memory-mapped arrays and shared by all devices, outer rounds and arms. The cost per
device does not depend on the teacher.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.pretrained.parts import NOTHING_PRETRAINED, PretrainedParts
from fedstill.common.atomic_files import replace_text, replacing
from fedstill.datasets.audiovisual.capture.views import ClipViews, PlainViews
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.models.audiovisual.network import AudioVisualNet, Features, Logits
from fedstill.models.vit.preprocess import to_tensors

Floats = npt.NDArray[np.float32]
BATCH = 256
ARRAYS = ("audio", "visual", "logits", "labels")


@dataclass(frozen=True)
class PublicBank:
    """Teacher features and logits of N public clips.

    Attributes:
        audio, visual: float32 (N, feature_width).
        logits: float32 (N, classes) of the fused head.
        labels: int64 (N,).
        version: content hash of the teacher that the arrays belong to.
    """

    audio: Floats
    visual: Floats
    logits: Floats
    labels: npt.NDArray[np.int64]
    version: str

    def features(self, positions: npt.NDArray[np.int64]) -> Features:
        """Teacher features of some clips, each float32 (len(positions), feature_width)."""
        return Features(torch.from_numpy(self.audio[positions]), torch.from_numpy(self.visual[positions]))

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """Softmax of logits / temperature, float32 (N, classes)."""
        result: Floats = (torch.from_numpy(np.array(self.logits)) / temperature).softmax(dim=1).numpy()
        return result

    @cached_property
    def feature_variance(self) -> tuple[float, float]:
        """Variance of each modality's features, the unit in which feature losses are counted."""
        return float(np.var(self.audio)), float(np.var(self.visual))

    def class_prior(self) -> Floats:
        """Share of each class among the public labels, float32 (classes,)."""
        counts = np.bincount(self.labels, minlength=self.logits.shape[1])
        shares: Floats = (counts / counts.sum()).astype(np.float32)
        return shares


def compute_bank(
    teacher: AudioVisualNet,
    store: ClipStore,
    compute: Compute,
    version: str,
    pretrained: PretrainedParts = NOTHING_PRETRAINED,
) -> PublicBank:
    """Run the teacher once over all public clips."""
    audio, visual, logits = [], [], []
    everything = np.arange(len(store.info))
    for features, outputs in outputs_of(teacher, PlainViews(store), everything, compute, pretrained):
        audio.append(features.audio.cpu())
        visual.append(features.visual.cpu())
        logits.append(outputs.joint.cpu())
    return PublicBank(
        torch.cat(audio).numpy(), torch.cat(visual).numpy(), torch.cat(logits).numpy(), store.labels, version
    )


def batches(positions: npt.NDArray[np.int64], size: int = BATCH) -> Iterator[npt.NDArray[np.int64]]:
    """The positions in pieces of at most ``size``."""
    return (positions[start : start + size] for start in range(0, len(positions), size))


@torch.no_grad()
def outputs_of(
    net: AudioVisualNet,
    views: ClipViews,
    positions: npt.NDArray[np.int64],
    compute: Compute,
    pretrained: PretrainedParts = NOTHING_PRETRAINED,
) -> Iterator[tuple[Features, Logits]]:
    """Features and logits of clips, each in its fixed version, in batches; float32 on the compute device.

    Args:
        pretrained: the parts of a teacher; students have none.
    """
    net.eval()
    device = compute.torch_device
    for rows in batches(positions, min(BATCH, pretrained.most_clips)):
        audio, frames = pretrained.inputs(rows, *to_tensors(*views.fixed(rows)))
        with compute.autocast():
            found = net.encoders(audio.to(device), frames.to(device))
            outputs = net.head(found)
        yield Features(*_floats(found)), Logits(*_floats(outputs))


def save_bank(bank: PublicBank, directory: Path) -> None:
    """Write the arrays and, last, ``bank.json``: a folder without it is unfinished and will be recomputed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bank.json").unlink(missing_ok=True)
    for name in ARRAYS:
        with replacing(directory / f"{name}.npy") as part, part.open("wb") as file:
            np.save(file, getattr(bank, name), allow_pickle=False)
    replace_text(directory / "bank.json", json.dumps({"version": bank.version}))


def open_bank(directory: Path, version: str) -> PublicBank | None:
    """The bank of teacher ``version``, memory-mapped; None if there is none (then compute it)."""
    try:
        found = json.loads((directory / "bank.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("version") != version:
        return None
    audio, visual, logits, labels = (
        np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS
    )
    return PublicBank(audio, visual, logits, labels, version)


def _floats(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.float() for tensor in tensors]
