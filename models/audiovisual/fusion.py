"""Fusion heads: from the two modalities' features to class logits.

The four heads of the thesis' line of work (OGM-GE, PMR): concat, sum, FiLM and gated. Each maps two
(batch, width) float tensors to (batch, classes) logits. What is added to its ``logit_bias``, float (classes,), is
added to every logit row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedstill.models.audiovisual.specs import Fusion as Fusion


class ConcatFusion(nn.Module):
    """One linear layer on [audio; visual]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(2 * width, classes)

    @property
    def logit_bias(self) -> Tensor:
        return self.classifier.bias

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.cat([audio, visual], dim=1))
        return logits


class SumFusion(nn.Module):
    """One linear layer per modality, logits added."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.audio = nn.Linear(width, classes)
        self.visual = nn.Linear(width, classes)

    @property
    def logit_bias(self) -> Tensor:
        return self.audio.bias

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.audio(audio) + self.visual(visual)
        return logits


class FilmFusion(nn.Module):
    """Audio scales and shifts the visual features (FiLM, Perez et al. 2018), then one linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.classifier = nn.Linear(width, classes)

    @property
    def logit_bias(self) -> Tensor:
        return self.classifier.bias

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        scale, shift = self.modulation(audio).chunk(2, dim=1)
        logits: Tensor = self.classifier((1 + scale) * visual + shift)
        return logits


class GatedFusion(nn.Module):
    """A sigmoid gate from the audio features on a projection of the visual ones (Kiela et al. 2018)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    @property
    def logit_bias(self) -> Tensor:
        return self.classifier.bias

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.sigmoid(self.gate(audio)) * self.value(visual))
        return logits


_HEADS: dict[str, type[nn.Module]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "film": FilmFusion,
    "gated": GatedFusion,
}


def fusion_head(kind: Fusion, width: int, classes: int) -> nn.Module:
    """The fusion head ``kind`` for features of ``width`` and ``classes`` logits."""
    return _HEADS[kind](width, classes)
