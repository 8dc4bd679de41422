"""From stored arrays to network inputs, in one place so that cloud and device never differ."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fedstill.models.vit.preprocess_settings import Preprocess

FRAME_MEAN, FRAME_STD = 0.5, 0.25


def to_tensors(audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Stored clips to float32 network inputs.

    Args:
        audio: float32 (n, bins, steps), already z-scored per clip.
        frames: uint8 (n, count, channels, size, size).

    Returns:
        (n, 1, bins, steps) and (n, count, channels, size, size), frames roughly zero-mean, unit-variance.
    """
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).float().div_(255 * FRAME_STD)
    return torch.from_numpy(np.ascontiguousarray(audio)).unsqueeze(1), pictures.sub_(FRAME_MEAN / FRAME_STD)


def image_tensor(image: npt.NDArray[np.uint8], size: int, preprocess: Preprocess) -> Tensor:
    """One picture to a ViT's input: a square of it, resized, cropped and normalised.

    Args:
        image: uint8 RGB (height, width, 3), any size.
        size: side of the network's input.

    Returns:
        float32 (3, size, size).
    """
    height, width = image.shape[:2]
    if preprocess.crop_mode == "center":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float()
    side = preprocess.resized(size)
    if values.shape[2:] != (side, side):
        values = F.interpolate(
            values, (side, side), mode=preprocess.interpolation, antialias=True, align_corners=False
        )
    edge = round((side - size) / 2)
    values = values[0, :, edge : edge + size, edge : edge + size]
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (preprocess.mean, preprocess.std))
    return values.clamp(0, 255).div_(255).sub_(mean).div_(std)


def image_batch(images: Iterable[npt.NDArray[np.uint8]], size: int, preprocess: Preprocess) -> Tensor:
    """Pictures of any sizes to float32 (batch, 3, size, size); see :func:`image_tensor`."""
    return torch.stack([image_tensor(image, size, preprocess) for image in images])
