"""Where and how tensors are computed: device, precision and threads, decided once per process."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True, slots=True)
class Compute:
    """``device`` is a torch device name; ``auto`` is CUDA where there is one. bf16 is autocast, weights stay fp32."""

    device: str = "auto"
    precision: Precision = "bf16"
    workers: int = 2  # devices personalised at the same time, one torch thread each on a CPU

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers: {self.workers} is below 1")

    @property
    def torch_device(self) -> torch.device:
        import torch  # here: a configuration is read where there is none

        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(name)

    def autocast(self) -> AbstractContextManager[object]:
        import torch

        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=self.precision == "bf16")


def use_threads(count: int) -> None:
    """Let torch use ``count`` threads in this process; more than the cores there are slows everything down."""
    import torch

    torch.set_num_threads(max(1, min(count, os.cpu_count() or 1)))
