"""A student at work on the device's own clips: features and class probabilities, nothing else.

This file and what it imports is all that a device needs to run its model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedstill.edge_client.students import ShelvedStudent
from fedstill.models.audiovisual import AudioVisualNet, Features
from fedstill.models.checkpoint import network_from_json
from fedstill.models.packing import load_arrays
from fedstill.models.preprocess import to_tensors

BATCH = 64


@dataclass(frozen=True)
class Inputs:
    """A device's clips as stored: audio float32 (n, bins, steps), frames uint8 (n, count, channels, size, size)."""

    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]


def rebuild(student: ShelvedStudent) -> AudioVisualNet:
    """The network of a student on the shelf, in evaluation mode. Raises ValueError naming what does not fit."""
    spec = network_from_json(student.spec)
    if spec.classes != len(student.class_names):
        raise ValueError(f"spec: {spec.classes} classes for {len(student.class_names)} class names")
    net = AudioVisualNet(spec)
    load_arrays(net, student.state)
    return net.eval()


@torch.no_grad()
def features(net: AudioVisualNet, inputs: Inputs) -> Features:
    """float32 features of all clips, each (n, feature_width); fp32 arithmetic, as a device would."""
    parts = []
    for start in range(0, len(inputs.audio), BATCH):
        stop = start + BATCH
        parts.append(net.encoders(*to_tensors(inputs.audio[start:stop], inputs.frames[start:stop])))
    return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))


def probabilities(logits: Tensor) -> npt.NDArray[np.float32]:
    """Softmax of (n, classes) logits as float32 numpy."""
    result: npt.NDArray[np.float32] = logits.detach().softmax(dim=1).numpy()
    return result
