"""What runs the trunk for one batch: torch, or a compiler of graphs.

A backend knows no tasks. Prompts come with the batch and heads are applied to its features, so a hot swap of tasks
compiles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedstill.models.vit.schedules import TokenSchedule


class Backend(Protocol):
    """The trunk on one device.

    Attributes:
        device, dtype: of the prompts that it takes and of the features that it gives.
        int8: whether it runs schedules in int8.
    """

    device: torch.device
    dtype: torch.dtype
    int8: bool

    def warm_up(self, schedule: TokenSchedule, sizes: Sequence[int]) -> None:
        """Do everything now that a first batch of these sizes would have to wait for."""
        ...

    def features(self, images: Tensor, schedule: TokenSchedule, prompts: Tensor | None) -> Tensor:
        """``ElasticViT.features``, to rounding: (batch, 3, size, size) -> (batch, width); valid until the next call.

        A schedule in int8 is rounded to 8 bits in front of every linear layer.

        Args:
            images: float32 on the CPU, of any batch size.
            prompts: of this backend's device and dtype; needed if and only if the schedule has prompts.
        """
        ...
