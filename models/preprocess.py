"""From stored arrays to network inputs, in one place so that cloud and device can never disagree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
