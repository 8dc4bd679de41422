"""Training of the compression ladder (Algorithm 8): a compressor and a head per rate, on frozen student features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedstill.models.audiovisual import Features
from fedstill.models.compression import RungNet

EPOCHS = 60
BATCH = 64
LEARNING_RATE = 2e-3


def train_rung(
    features: Features, labels: Tensor, rate: float, classes: int, generator: torch.Generator
) -> RungNet:
    """Cross-entropy training (Eq. 5.9) on the features of the selected public clips.

    Args:
        features: the frozen student's, float32 (n, feature_width) each.
        labels: int64 (n,).
        rate: compression ratio, >= 1.
    """
    net = RungNet(features.audio.shape[1], classes, rate)
    for parameter in net.parameters():
        bound = parameter.shape[-1] ** -0.5
        torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)
    optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.01)
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
