"""The compression levels: fewer feature dimensions and fewer bits, for slow links.

A level is (rate, precision). Rate 1 is no module (the thesis' Table 5.3 row equals Table 5.2's); rate r
reduces each modality's ``feature_width`` to floor(feature_width / r) by a linear compressor, and a joint
linear head classifies the two reduced vectors (thesis 5.3.5, Algorithm 8). int8 stores one symmetric
scale per modality and clip, fp16 rounds to half precision. The levels' numbers are in ``levels.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedstill.models.audiovisual.levels import (
    MODALITIES,
    RATES,
    SCALE_BYTES,
    Precision,
    compressed_payload_bytes,
    compressed_width,
)
from fedstill.models.audiovisual.network import Features

__all__ = [
    "MODALITIES",
    "RATES",
    "SCALE_BYTES",
    "CompressionNet",
    "Compressor",
    "Precision",
    "compressed_payload_bytes",
    "compressed_width",
    "dequantise",
    "quantise",
]


class Compressor(nn.Module):
    """Features -> reduced features, one linear layer per modality; the identity at rate 1."""

    def __init__(self, feature_width: int, rate: float) -> None:
        super().__init__()
        width = compressed_width(feature_width, rate)
        identity = width == feature_width
        self.audio: nn.Module = nn.Identity() if identity else nn.Linear(feature_width, width)
        self.visual: nn.Module = nn.Identity() if identity else nn.Linear(feature_width, width)

    def forward(self, features: Features) -> Features:
        return Features(self.audio(features.audio), self.visual(features.visual))


class CompressionNet(nn.Module):
    """A compressor with the joint head for its output: features -> (batch, classes) logits."""

    def __init__(self, feature_width: int, classes: int, rate: float) -> None:
        super().__init__()
        self.compressor = Compressor(feature_width, rate)
        self.head = nn.Linear(MODALITIES * compressed_width(feature_width, rate), classes)

    def forward(self, features: Features, precision: Precision = Precision.FP32) -> Tensor:
        reduced: Features = self.compressor(features)
        if precision is Precision.INT8:
            reduced = Features(*(dequantise(*quantise(part)) for part in reduced))
        elif precision is Precision.FP16:
            reduced = Features(*(part.half().float() for part in reduced))
        logits: Tensor = self.head(reduced.joined())
        return logits


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row.

    Args:
        values: float (batch, width).

    Returns:
        int8 (batch, width) and float32 scales (batch, 1); a row of zeros gets scale 1.
        The error of ``dequantise`` is at most scale / 2 per value.
    """
    peak = values.abs().amax(dim=1, keepdim=True).float()
    scale = torch.where(peak > 0, peak / 127, torch.ones_like(peak))
    return (values / scale).round().clamp(-127, 127).to(torch.int8), scale


def dequantise(values: Tensor, scale: Tensor) -> Tensor:
    """The inverse of :func:`quantise`, float32 (batch, width)."""
    return values.float() * scale
