"""Pretrained encoders for a teacher: a network of timm for pictures or of torchaudio for sound, in our clips' form.

Both stay in evaluation mode while they are fine-tuned: no dropout and unchanged norm statistics. So all randomness of
a teacher comes from its own generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedstill.models.vit.preprocess import FRAME_MEAN, FRAME_STD

SOUND_RATE = 16_000
"""Hz; every wav2vec 2.0, HuBERT and WavLM was trained on it."""


class PretrainedEncoder(nn.Module):
    """Base of both: always in evaluation mode. ``width`` is that of its own features."""

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.net = net.eval()
        self.width = width

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class PictureEncoder(PretrainedEncoder):
    """(batch, frames, channels, height, width), normalised as ours -> (batch, width): the mean over a clip's frames.

    Args:
        net: (batch, 3, size, size) -> (batch, width).
        size, mean, std: what the weights were trained with, for values from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, width: int, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(net, width)
        self.size = size
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).reshape(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        batch, count, channels = frames.shape[:3]
        pictures = frames.flatten(0, 1) * FRAME_STD + FRAME_MEAN
        pictures = F.interpolate(pictures, self.size, mode="bicubic", antialias=True, align_corners=False)
        pictures = pictures.clamp(0, 1).expand(-1, 3, -1, -1) if channels == 1 else pictures.clamp(0, 1)
        features: Tensor = self.net((pictures - self.mean) / self.std)
        return features.reshape(batch, count, -1).mean(dim=1)


class SoundEncoder(PretrainedEncoder):
    """Waveforms (batch, samples) at ``SOUND_RATE`` in [-1, 1] -> (batch, width): the mean over time.

    Args:
        net: a ``Wav2Vec2Model`` of torchaudio without a head.
        normalise: bring each waveform to mean 0 and variance 1, which the weights were trained with.
    """

    def __init__(self, net: nn.Module, width: int, normalise: bool) -> None:
        super().__init__(net, width)
        self.normalise = normalise

    def forward(self, waveforms: Tensor) -> Tensor:
        if self.normalise:
            waveforms = F.layer_norm(waveforms, waveforms.shape[-1:])
        features, _ = self.net(waveforms)
        return torch.as_tensor(features).mean(dim=1)


class Adaptor(nn.Sequential):
    """From a pretrained encoder's features, brought to one scale, to the teacher's width: one linear layer."""

    def __init__(self, width: int, feature_width: int) -> None:
        super().__init__(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, feature_width))
