"""The pretrained part of a teacher, by modality: what its network reads and what it is.

A frozen encoder runs once over the public clips, and the teacher reads its features. A fine-tuned encoder is part of
the teacher's network. Either way a linear adaptor follows, so features have the width that students imitate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedstill.cloud_server.pretrained.frozen_features import BATCH, Floats, Inputs, Positions
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.pretrained import Adaptor, PictureEncoder, SoundEncoder


class Part(Protocol):
    """One modality. Implemented by ``Frozen``, ``FineTunedPictures`` and ``FineTunedSound``."""

    def inputs(self, rows: Positions, stored: Tensor) -> Tensor:
        """What the network reads for the clips at ``rows``, whose (augmented) stored form is ``stored``."""
        ...

    def network(self, feature_width: int) -> nn.Module:
        """From ``inputs`` to (batch, feature_width)."""
        ...


@dataclass(frozen=True)
class Frozen:
    """Features that an encoder with so many parameters made of all clips; float32 (clips, width)."""

    features: Floats
    parameters: int

    def inputs(self, rows: Positions, stored: Tensor) -> Tensor:
        return torch.from_numpy(self.features[rows])

    def network(self, feature_width: int) -> nn.Module:
        return Adaptor(self.features.shape[1], feature_width)


@dataclass(frozen=True)
class FineTunedPictures:
    """``rate``: see ``PretrainedSettings``."""

    encoder: PictureEncoder
    rate: float

    def inputs(self, rows: Positions, stored: Tensor) -> Tensor:
        return stored

    def network(self, feature_width: int) -> nn.Module:
        return nn.Sequential(self.encoder, Adaptor(self.encoder.width, feature_width))


@dataclass(frozen=True)
class FineTunedSound:
    """Its convolutions stay as they are, as is usual; ``waveforms`` come from beside the clip store."""

    encoder: SoundEncoder
    rate: float
    waveforms: Inputs

    def inputs(self, rows: Positions, stored: Tensor) -> Tensor:
        return self.waveforms(rows)

    def network(self, feature_width: int) -> nn.Module:
        self.encoder.net.feature_extractor.requires_grad_(False)
        return nn.Sequential(self.encoder, Adaptor(self.encoder.width, feature_width))


class PretrainedParts(NamedTuple):
    """The parts of one teacher; None where it has an encoder of its own, trained from nothing."""

    audio: Part | None = None
    visual: Part | None = None

    @property
    def reads_clips(self) -> bool:
        """Whether anything but ready features is read, so that an augmented clip differs from the plain one."""
        return not (isinstance(self.audio, Frozen) and isinstance(self.visual, Frozen))

    @property
    def most_clips(self) -> int:
        """How many clips may go through the network at a time."""
        return sys.maxsize if all(isinstance(part, Frozen | None) for part in self) else BATCH

    @property
    def frozen_parameters(self) -> int:
        """Of the encoders that are not part of the teacher's network."""
        return sum(part.parameters for part in self if isinstance(part, Frozen))

    def inputs(self, rows: Positions, audio: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The network's inputs for stored clips: ``audio`` and ``frames`` as ``to_tensors`` gives them."""
        return (
            audio if self.audio is None else self.audio.inputs(rows, audio),
            frames if self.visual is None else self.visual.inputs(rows, frames),
        )

    def put_into(self, net: AudioVisualNet) -> None:
        """Replace the net's encoders by these parts; their adaptors are not initialised yet."""
        for name, part in self._asdict().items():
            if part is not None:
                setattr(net.encoders, name, part.network(net.spec.feature_width))

    def fine_tuned(self) -> Iterator[tuple[list[nn.Parameter], float]]:
        """(parameters, share of the learning rate) of every encoder that is trained further."""
        for part in self:
            if isinstance(part, FineTunedPictures | FineTunedSound):
                yield [one for one in part.encoder.parameters() if one.requires_grad], part.rate


NOTHING_PRETRAINED = PretrainedParts()
