"""Training of the compression levels (Algorithm 8): a compressor and a head per rate, on frozen student features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.distillation.optimisation import AdamW
from fedstill.cloud_server.distillation.public_bank import PublicBank, outputs_of
from fedstill.cloud_server.distillation.randomness import generator
from fedstill.datasets.audiovisual.capture.views import ClipViews
from fedstill.models.audiovisual.compression import CompressionNet
from fedstill.models.audiovisual.levels import RATES
from fedstill.models.audiovisual.network import AudioVisualNet, Features
from fedstill.models.weights.packing import pack

EPOCHS = 60
BATCH = 64
LEARNING_RATE = 2e-3


def train_levels(
    student: AudioVisualNet,
    views: ClipViews,
    bank: PublicBank,
    positions: npt.NDArray[np.int64],
    compute: Compute,
    seed: int,
) -> dict[float, CompressionNet]:
    """Compressor and head per rate for a finished student, on the public clips at ``positions``; each has its own
    randomness. Rate 1 needs neither: there the student's own head decides."""
    outputs = outputs_of(student, views, positions, compute)
    parts = [found for found, _ in outputs]
    found = Features(*(torch.cat(column).cpu().clone() for column in zip(*parts, strict=True)))
    labels, classes = torch.from_numpy(np.array(bank.labels[positions])), bank.logits.shape[1]
    return {
        rate: train_level(found, labels, rate, classes, generator(seed, "rung", rate))
        for rate in RATES
        if rate != 1
    }


def pack_compressors(levels: Mapping[float, CompressionNet]) -> npt.NDArray[np.uint8]:
    """The part of the levels that a device needs, uint8 (bytes,): safetensors named ``1.5.audio.weight``."""
    return pack(
        {
            f"{rate:g}.{name}": value
            for rate, level in levels.items()
            for name, value in level.compressor.state_dict().items()
        }
    )


def train_level(
    features: Features, labels: Tensor, rate: float, classes: int, generator: torch.Generator
) -> CompressionNet:
    """Cross-entropy training (Eq. 5.9) on the features of the selected public clips.

    Args:
        features: the frozen student's, float32 (n, feature_width) each.
        labels: int64 (n,).
        rate: compression ratio, > 1.
    """
    net = CompressionNet(features.audio.shape[1], classes, rate)
    for parameter in net.parameters():
        bound = parameter.shape[-1] ** -0.5
        torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)
    optimiser = AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.01)
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            logits = net(Features(features.audio[rows], features.visual[rows]))
            loss = F.cross_entropy(logits, labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return net.eval()
