"""What the baselines share: a device's query clips as a network's inputs, in batches that batch norm can use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.own_clips import FEWEST_CLIPS
from fedstill.models.vit.preprocess import to_tensors


def network_inputs(
    net: AudioVisualNet, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]
) -> tuple[Tensor, Tensor]:
    """Clips as a store keeps them, on the network's device. Raises ValueError if there are fewer than two."""
    if len(audio) < FEWEST_CLIPS:
        raise ValueError(f"{len(audio)} query clips: batch statistics need at least {FEWEST_CLIPS}")
    device = next(net.parameters()).device
    sound, pictures = to_tensors(audio, frames)
    return sound.to(device), pictures.to(device)


def batch_count(clips: int, batch_size: int) -> int:
    """How many batches ``even_batches`` makes."""
    return min(-(-clips // batch_size), clips // FEWEST_CLIPS)


def even_batches(clips: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A random order of ``clips`` clips, int64, cut into batches of at most ``batch_size`` that differ by one at most.

    So no small remainder, whose statistics would be poor, is left or dropped. A single clip never makes a batch: with
    three clips, batches of two become one of three.
    """
    order = torch.randperm(clips, generator=generator)
    return order.tensor_split(batch_count(clips, batch_size))
