"""Clips whose classes are patterns in sound and picture under noise, and a small student that knows them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from fedstill.models.audiovisual.network import AudioVisualNet, NetworkSpec
from fedstill.models.audiovisual.specs import EncoderSpec
from fedstill.models.vit.preprocess import to_tensors

CLASSES, BINS, STEPS, SIZE = 4, 12, 10, 10
SPEC = NetworkSpec(EncoderSpec("resnet10", 4, "compact"), 16, CLASSES, frame_channels=1)


class Clips(NamedTuple):
    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def first(self, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        return self.audio[:count], self.frames[:count]


def made_clips(count: int, seed: int) -> Clips:
    """A pattern for each class in sound and picture, under noise."""
    patterns, rng = np.random.default_rng(99), np.random.default_rng(seed)
    sounds = patterns.normal(size=(CLASSES, BINS, STEPS))
    pictures = patterns.normal(size=(CLASSES, 1, 1, SIZE, SIZE))
    labels = np.arange(count) % CLASSES
    audio = 1.3 * sounds[labels] + rng.normal(size=(count, BINS, STEPS))
    frames = 128 + 35 * pictures[labels] + 25 * rng.normal(size=(count, 1, 1, SIZE, SIZE))
    return Clips(audio.astype(np.float32), frames.clip(0, 255).astype(np.uint8), labels)


def recorded_otherwise(clips: Clips, level: float = 3.0) -> Clips:
    """The same clips through a louder microphone with an offset, and a paler camera."""
    frames = (0.4 * clips.frames + 150).astype(np.uint8)
    return Clips(2 * clips.audio + np.float32(level), frames, clips.labels)


def patterned_student() -> AudioVisualNet:
    """It knows the clips as they are."""
    net, clips = AudioVisualNet(SPEC, torch.Generator().manual_seed(1)), made_clips(256, 1)
    sound, pictures = to_tensors(clips.audio, clips.frames)
    labels, generator = torch.from_numpy(clips.labels), torch.Generator().manual_seed(2)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(6):
        for rows in torch.randperm(256, generator=generator).split(32):
            loss = F.cross_entropy(net(sound[rows], pictures[rows]).joint, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()
