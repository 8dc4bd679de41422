"""SHOT: new encoders for a device under the old classifier (Liang et al. 2020, arXiv 2002.08546).

The heads, the source's "hypothesis", stay as they are. The encoders learn to give features that these heads are sure
of, clip by clip, and that spread over the classes (information maximisation). They also learn pseudo-labels, made anew
before every epoch from the nearest of the classes' centroids among the device's own features. The method takes the
classes for about equally frequent on the device: where some are missing, the spread does harm.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedstill.evaluation.robustness.baselines.query_clips import batch_count, even_batches, network_inputs
from fedstill.evaluation.robustness.baselines.tent import entropy
from fedstill.models.audiovisual.network import AudioVisualNet

AT_ONCE = 256
"""Clips per pass without gradients."""
TINY = 1e-30


@dataclass(frozen=True)
class ShotSettings:
    """The paper's. Its learning rate is 1e-3 for a pretrained ResNet-50 and 1e-2 for new layers and for the small
    networks of its digit experiments; ours are small, too."""

    learning_rate: float = 1e-2
    weight_decay: float = 1e-3
    batch_size: int = 64
    epochs: int = 15
    pseudo_label_weight: float = 0.3  # the paper's beta


def adapt(
    net: AudioVisualNet,
    audio: npt.NDArray[np.float32],
    frames: npt.NDArray[np.uint8],
    generator: torch.Generator,
    settings: ShotSettings | None = None,
) -> AudioVisualNet:
    """A copy of ``net`` in evaluation mode whose encoders are adapted to the given unlabelled clips.

    Args:
        net: on any device; unchanged. Its fused head decides; the unimodal ones are kept, too.
        audio, frames: as in a clip store; at least two clips.
        generator: on the CPU; of the order of the clips.
        settings: the paper's by default.
    """
    settings = settings or ShotSettings()
    adapted = copy.deepcopy(net)
    sound, pictures = network_inputs(adapted, audio, frames)
    adapted.head.requires_grad_(False)
    adapted.encoders.requires_grad_(True)
    optimiser = torch.optim.SGD(
        adapted.encoders.parameters(),
        settings.learning_rate,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        foreach=True,
    )
    steps = settings.epochs * batch_count(len(sound), settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + 10 * step / steps) ** -0.75)
    for _ in range(settings.epochs):
        labels = _pseudo_labels(adapted, sound, pictures)
        adapted.train()
        for rows in even_batches(len(sound), settings.batch_size, generator):
            logits = adapted(sound[rows], pictures[rows]).joint
            learnt = F.cross_entropy(logits, labels[rows])
            loss = information_loss(logits) + settings.pseudo_label_weight * learnt
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return adapted.eval().requires_grad_(False)


def information_loss(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions, less the entropy of their mean: low where they are sure and diverse."""
    mean = logits.softmax(dim=1).mean(dim=0)
    return entropy(logits).mean() + (mean * (mean + 1e-8).log()).sum()


@torch.no_grad()
def _pseudo_labels(net: AudioVisualNet, sound: Tensor, pictures: Tensor) -> Tensor:
    """The class with the nearest centroid for each clip, int64 (n,)."""
    net.eval()
    features, probabilities = [], []
    for start in range(0, len(sound), AT_ONCE):
        found = net.encoders(sound[start : start + AT_ONCE], pictures[start : start + AT_ONCE])
        features.append(found.joined())
        probabilities.append(net.head(found).joint.softmax(dim=1))
    return centroid_labels(torch.cat(features), torch.cat(probabilities))


def centroid_labels(features: Tensor, probabilities: Tensor) -> Tensor:
    """The paper's two rounds: centroids weighted by the predictions, then those of the labels that these give.

    Args:
        features: (n, width) float.
        probabilities: (n, classes) float.

    Returns:
        int64 (n,): the class whose centroid has the highest cosine. In the second round only classes with clips have
        one.
    """
    directions = F.normalize(features, dim=1)
    labels = (directions @ _centroids(features, probabilities).T).argmax(dim=1)
    hard = F.one_hot(labels, probabilities.shape[1]).to(features)
    cosines = directions @ _centroids(features, hard).T
    return cosines.masked_fill(hard.sum(dim=0) == 0, -torch.inf).argmax(dim=1)


def _centroids(features: Tensor, weights: Tensor) -> Tensor:
    """The directions of the weighted means, (classes, width); their lengths do not count in a cosine."""
    shares = weights / weights.sum(dim=0).clamp_min(TINY)
    return F.normalize(shares.T @ features, dim=1)
