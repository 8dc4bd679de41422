"""How an engine runs: what it is asked for, on which device, by which backend."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from fedstill.models.vit.schedules import TokenSchedule

Precision = Literal["auto", "fp32", "bf16"]
BackendName = Literal["auto", "torch", "openvino"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine runs.

    Attributes:
        schedules: all that it may be asked for.
        batch_buckets: batch sizes to warm up, ascending; the last is the largest batch. On CUDA a batch is
            padded to the next of them and replayed as a graph.
        device: torch device name; ``auto`` is CUDA if there is a device, and all CPUs are one.
        precision: ``auto`` takes bf16 if a trial run is faster than fp32.
        backend: what runs the trunk; ``auto`` takes what a trial run finds fastest.
        variant: of an earlier engine (``Engine.variant``), taken without a trial if it is possible here.
        memory: bytes that it may take; compiled graphs are fewer then. By default a share of what is free.
        ranges: file with the ranges of activations; without it no schedule runs in int8.

    Raises:
        ValueError: no schedule, or buckets that are not ascending from at least 1.
    """

    schedules: tuple[TokenSchedule, ...]
    batch_buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    device: str = "auto"
    precision: Precision = "auto"
    backend: BackendName = "torch"
    variant: str = ""
    memory: int | None = None
    ranges: Path | None = None

    def __post_init__(self) -> None:
        if not self.schedules:
            raise ValueError("schedules: none given")
        sizes = self.batch_buckets
        if not sizes or sizes[0] < 1 or any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"batch_buckets: {sizes} are not ascending from at least 1")

    @property
    def torch_device(self) -> torch.device:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device("cpu" if name.startswith("cpu") else name)

    @property
    def maximum_batch(self) -> int:
        return self.batch_buckets[-1]
