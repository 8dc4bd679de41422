"""ResNet encoders that turn one modality into one feature vector.

The thesis' "ResNet101" is ``resnet101_basic``: BasicBlock in a [3, 4, 23, 3] layout, 512-d; the true Bottleneck-101
is 2048-d and gets an adaptor to the shared feature width. ``width`` is the channel count of the first stage, 64 in the
papers, less on a small CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedstill.models.audiovisual.residual import BasicBlock, Bottleneck, Pointwise
from fedstill.models.audiovisual.specs import EncoderSpec as EncoderSpec

_LAYOUTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet101_basic": (BasicBlock, (3, 4, 23, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class Encoder(nn.Module):
    """(batch, channels, height, width) float -> (batch, feature_width) float.

    A linear adaptor is added only if the network's own width differs from ``feature_width``. Teacher and student
    features then have one width: the student imitates the teacher's value by value, and one fusion head reads both.
    """

    def __init__(self, spec: EncoderSpec, in_channels: int, feature_width: int) -> None:
        super().__init__()
        block, depths = _LAYOUTS[spec.architecture]
        self.stem = _stem(spec, in_channels)
        channels, stages = spec.width, []
        for stage, depth in enumerate(depths):
            planes = spec.width * 2**stage
            stages.append(_stage(block, channels, planes, depth, stride=1 if stage == 0 else 2))
            channels = planes * block.expansion
        self.stages = nn.Sequential(*stages)
        self.adaptor: nn.Module = (
            nn.Identity() if channels == feature_width else nn.Linear(channels, feature_width)
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(self.stem(images))
        features: Tensor = self.adaptor(maps.mean(dim=(2, 3)))
        return features


class FrameEncoder(nn.Module):
    """(batch, frames, channels, height, width) -> (batch, feature_width): the mean over a clip's frames.

    Frames are folded into the batch and averaged after the network, as in the thesis' line of work
    (``adaptive_avg_pool3d`` over time and space).
    """

    def __init__(self, spec: EncoderSpec, in_channels: int, feature_width: int) -> None:
        super().__init__()
        self.encoder = Encoder(spec, in_channels, feature_width)

    def forward(self, frames: Tensor) -> Tensor:
        batch, count = frames.shape[:2]
        features: Tensor = self.encoder(frames.flatten(0, 1))
        return features.reshape(batch, count, -1).mean(dim=1)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Kaiming fan-out for convolutions, Xavier for linear layers, ones and zeros for norms; reproducible."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def _stem(spec: EncoderSpec, in_channels: int) -> nn.Sequential:
    standard = spec.stem == "standard"
    kernel = 7 if standard else 3
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, spec.width, kernel, stride=2, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(spec.width),
        nn.ReLU(inplace=True),
    ]
    if standard:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*layers)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    out = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out:
        downsample = nn.Sequential(Pointwise(channels, out, stride), nn.BatchNorm2d(out))
    first = block(channels, planes, stride, downsample)
    return nn.Sequential(first, *(block(out, planes) for _ in range(depth - 1)))
