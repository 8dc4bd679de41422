"""AdaBN: the device's own batch norm statistics in place of the training set's (Li et al. 2016, arXiv 1603.04779).

The paper holds that a network's weights know the classes and its statistics know the domain. So it computes the mean
and variance of every neuron over all target clips, and changes nothing else. Applied to a teacher, this is the
reference "teacher with the device's statistics".
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedstill.evaluation.robustness.baselines.query_clips import batch_norms, network_inputs
from fedstill.models.audiovisual.network import AudioVisualNet


@torch.no_grad()
def adapt(
    net: AudioVisualNet, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]
) -> AudioVisualNet:
    """A copy of ``net`` in evaluation mode whose running statistics are those of the given unlabelled clips.

    All clips pass at once. So a layer's statistics are the exact ones over all clips, of inputs that the layers below
    normalise with their own new statistics: the copy answers a single clip as if all clips were one batch. Smaller
    batches would need a pass for every layer, or give layers inputs that the copy never sees again. Without gradients
    this takes about 0.2 MB a clip with a student of ``emotion_pairs``.

    Args:
        net: on any device; unchanged.
        audio: float32 (n, bins, steps), as in a clip store.
        frames: uint8 (n, count, channels, size, size).

    Raises:
        ValueError: if there are fewer than two clips, or no batch norm.
    """
    adapted = copy.deepcopy(net).eval()
    sound, pictures = network_inputs(adapted, audio, frames)
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in batch_norms(adapted)]
    adapted.encoders(sound, pictures)
    for hook in hooks:
        hook.remove()
    return adapted


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Just before a batch norm in evaluation mode normalises ``inputs``: by their own mean and variance, then."""
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
    norm.running_mean, norm.running_var = mean, variance
