"""TENT: a network becomes surer of a device's clips, by the scales and shifts of its batch norms alone.

Wang et al. 2021, arXiv 2006.10726: normalise each batch by its own statistics, and step the affine parameters against
the entropy of the predictions. The paper answers each batch while it adapts to it. A device answers clips one by one,
and they have no batch statistics. So this is the paper's episodic, offline form: adapt to the query clips, from the
same network for each device, then freeze the statistics of all query clips as the running ones, as AdaBN does.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedstill.evaluation.robustness.baselines import adabn
from fedstill.evaluation.robustness.baselines.query_clips import even_batches, network_inputs
from fedstill.models.audiovisual.batch_statistics import batch_norms
from fedstill.models.audiovisual.network import AudioVisualNet


@dataclass(frozen=True)
class TentSettings:
    """The paper's: Adam at 1e-3 (for small networks), one pass over the clips."""

    learning_rate: float = 1e-3
    batch_size: int = 64
    epochs: int = 1


def adapt(
    net: AudioVisualNet,
    audio: npt.NDArray[np.float32],
    frames: npt.NDArray[np.uint8],
    generator: torch.Generator,
    settings: TentSettings | None = None,
) -> AudioVisualNet:
    """A copy of ``net`` in evaluation mode, adapted to the given unlabelled clips.

    Args:
        net: on any device; unchanged.
        audio, frames: as in a clip store; at least two clips.
        generator: on the CPU; of the order of the clips.
        settings: the paper's by default.
    """
    settings = settings or TentSettings()
    adapted = copy.deepcopy(net).eval().requires_grad_(False)
    sound, pictures = network_inputs(adapted, audio, frames)
    norms = batch_norms(adapted)
    for norm in norms:
        norm.train().requires_grad_(True)
    affine = [parameter for norm in norms for parameter in norm.parameters()]
    optimiser = torch.optim.Adam(affine, settings.learning_rate, foreach=True)
    for _ in range(settings.epochs):
        for rows in even_batches(len(sound), settings.batch_size, generator):
            loss = entropy(adapted(sound[rows], pictures[rows]).joint).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return adabn.adapt(adapted, audio, frames).requires_grad_(False)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats of the predictions behind (batch, classes) logits; (batch,)."""
    log_probabilities = logits.log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)
