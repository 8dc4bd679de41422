"""The two residual blocks of ResNet (He et al. 2016), with torchvision's names and numbers.

A test holds them against torchvision's, weight by weight. They are here because ``import torchvision`` brings in
torch's compiler, which takes as long as torch itself, in every process that loads a student.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ``downsample`` fits the shortcut to their output."""

    expansion: ClassVar[int] = 1

    def __init__(
        self, channels: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps if self.downsample is None else self.downsample(maps)
        inner = self.relu(self.bn1(self.conv1(maps)))
        outer = self.bn2(self.conv2(inner))
        outer += shortcut
        result: Tensor = self.relu(outer)
        return result


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1 that narrow and widen the maps; it has the stride ("ResNet V1.5")."""

    expansion: ClassVar[int] = 4

    def __init__(
        self, channels: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        wide = planes * self.expansion
        self.conv1 = _conv(channels, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, wide, 1)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps if self.downsample is None else self.downsample(maps)
        narrow = self.relu(self.bn1(self.conv1(maps)))
        narrow = self.relu(self.bn2(self.conv2(narrow)))
        outer = self.bn3(self.conv3(narrow))
        outer += shortcut
        result: Tensor = self.relu(outer)
        return result


class Pointwise(nn.Conv2d):
    """A 1x1 convolution without bias that may have a stride.

    In training it takes every second value first and then has no stride, which is the same. PyTorch 2.11's gradient of
    a strided one writes outside of its memory on AVX2 where maps have their channels last and fewer than 8 of them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(maps)
        down, right = self.stride
        return F.conv2d(maps[:, :, ::down, ::right], self.weight)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
