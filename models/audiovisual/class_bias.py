"""A class bias, which becomes part of a student: added to its logits by every head, so wherever the student runs.

A device whose classes are not mixed as the public ones are decides better with such a bias (Saerens et al. 2002).
Kept in the weights it travels, is exported, versioned and rolled back with the student, and no runtime knows of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedstill.models.audiovisual.compression import CompressionNet
from fedstill.models.audiovisual.network import AudioVisualNet

Bias = npt.NDArray[np.float32]


@torch.no_grad()
def with_class_bias(net: AudioVisualNet, bias: Bias) -> AudioVisualNet:
    """A copy of ``net`` whose three heads, fused and unimodal, add ``bias``, float32 (classes,), to their logits."""
    biased = copy.deepcopy(net)
    head = biased.head
    for parameter in (head.joint.logit_bias, head.audio.bias, head.visual.bias):
        _add(parameter, bias)
    return biased


@torch.no_grad()
def levels_with_class_bias(levels: Mapping[float, CompressionNet], bias: Bias) -> dict[float, CompressionNet]:
    """Copies of the compression levels, by rate, whose heads add ``bias``, too."""
    biased = copy.deepcopy(dict(levels))
    for level in biased.values():
        _add(level.head.bias, bias)
    return biased


def _add(parameter: object, bias: Bias) -> None:
    assert isinstance(parameter, Tensor)
    parameter.add_(torch.from_numpy(bias).to(parameter))
