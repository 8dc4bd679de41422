"""Guards the class bias: every head of every kind adds it, and the student that it was made from stays as it is."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from fedstill.models.audiovisual.class_bias import levels_with_class_bias, with_class_bias
from fedstill.models.audiovisual.compression import CompressionNet
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.models.audiovisual.fusion import Fusion
from fedstill.models.audiovisual.network import AudioVisualNet, Features, NetworkSpec

WIDTH, CLASSES = 8, 3
BIAS = np.array([-4.0, 0.5, 2.0], np.float32)


def features() -> Features:
    generator = torch.Generator().manual_seed(1)
    return Features(*(torch.randn(5, WIDTH, generator=generator) for _ in range(2)))


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_every_head_adds_it(fusion: Fusion) -> None:
    net = AudioVisualNet(NetworkSpec(EncoderSpec("resnet10", 2), WIDTH, CLASSES, fusion))
    before = net.head(features())
    for plain, biased in zip(before, with_class_bias(net, BIAS).head(features()), strict=True):
        torch.testing.assert_close(biased, plain + torch.from_numpy(BIAS))
    for plain, again in zip(before, net.head(features()), strict=True):
        assert torch.equal(plain, again)


def test_the_heads_of_compressed_features_add_it() -> None:
    levels = {rate: CompressionNet(WIDTH, CLASSES, rate) for rate in (1.5, 2.0)}
    biased = levels_with_class_bias(levels, BIAS)
    for rate, level in levels.items():
        torch.testing.assert_close(biased[rate](features()), level(features()) + torch.from_numpy(BIAS))
