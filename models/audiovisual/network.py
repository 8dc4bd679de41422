"""The audio-visual classifier that teacher and students share: two encoders, a fusion head, two unimodal heads.

The unimodal heads serve twice: as extra losses that keep one modality from dominating the other while the teacher
trains (balanced multimodal learning), and as the answer if a modality is missing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedstill.models.audiovisual.encoders import Encoder, FrameEncoder, initialise
from fedstill.models.audiovisual.fusion import fusion_head
from fedstill.models.audiovisual.specs import NetworkSpec as NetworkSpec


class Features(NamedTuple):
    """One (batch, feature_width) float tensor per modality."""

    audio: Tensor
    visual: Tensor

    def joined(self) -> Tensor:
        """[audio; visual], shape (batch, 2 * feature_width)."""
        return torch.cat([self.audio, self.visual], dim=1)


class Logits(NamedTuple):
    """(batch, classes) float logits of the fused and the two unimodal heads."""

    joint: Tensor
    audio: Tensor
    visual: Tensor


class Head(nn.Module):
    """Fused and unimodal classifiers on features; the teacher's head also scores student features (Eq. 5.1)."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.joint = fusion_head(spec.fusion, spec.feature_width, spec.classes)
        self.audio = nn.Linear(spec.feature_width, spec.classes)
        self.visual = nn.Linear(spec.feature_width, spec.classes)

    def forward(self, features: Features) -> Logits:
        return Logits(
            self.joint(features.audio, features.visual),
            self.audio(features.audio),
            self.visual(features.visual),
        )


class Encoders(nn.Module):
    """The two encoders of one model, which a device receives and runs."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.audio = Encoder(spec.encoder, in_channels=1, feature_width=spec.feature_width)
        self.visual = FrameEncoder(spec.encoder, spec.frame_channels, spec.feature_width)

    def forward(self, audio: Tensor, frames: Tensor) -> Features:
        """``audio`` (batch, 1, bins, steps) and ``frames`` (batch, count, channels, size, size), float."""
        return Features(self.audio(audio), self.visual(frames))


class AudioVisualNet(nn.Module):
    """Encoders and head together."""

    def __init__(self, spec: NetworkSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.encoders = Encoders(spec)
        self.head = Head(spec)
        initialise(self, generator or torch.Generator().manual_seed(0))

    def forward(self, audio: Tensor, frames: Tensor) -> Logits:
        logits: Logits = self.head(self.encoders(audio, frames))
        return logits


def available_logits(logits: Logits, has_audio: Tensor, has_visual: Tensor) -> Tensor:
    """The logits to use if modalities are missing: joint with both, unimodal with one.

    Args:
        logits: heads' outputs, each (batch, classes).
        has_audio, has_visual: bool (batch,).

    Raises:
        ValueError: if a row has neither modality.
    """
    if not bool((has_audio | has_visual).all()):
        raise ValueError("a clip needs audio or frames: both are marked missing")
    one = torch.where(has_audio.unsqueeze(1), logits.audio, logits.visual)
    return torch.where((has_audio & has_visual).unsqueeze(1), logits.joint, one)


def parameter_count(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters())
