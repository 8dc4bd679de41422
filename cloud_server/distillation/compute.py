"""Where and how tensors are computed: device, precision and threads, decided once per process."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fedstill.common.cores import usable_cores

if TYPE_CHECKING:
    import torch

    Net = TypeVar("Net", bound=torch.nn.Module)

Precision = Literal["auto", "bf16", "fp32"]
LEAST_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how the cloud computes; bf16 is autocast, weights stay fp32."""

    device: str = "auto"  # a torch device name; auto: CUDA if there is a device
    precision: Precision = (
        "auto"  # auto: bf16 if the hardware has it; emulated, it is 12 times slower than fp32
    )
    workers: int = 2  # devices personalised at the same time, one torch thread each on a CPU

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers: {self.workers} is below 1")

    @property
    def torch_device(self) -> torch.device:
        import torch  # imported here: configurations are also read without torch

        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(name)

    def to_train(self, net: Net) -> Net:
        """The network on its device. If its maps are wide enough, they have their channels last, which trains faster on
        a CPU (``benchmarks/students/training_layout.py``). Libraries know narrow ones less well."""
        import torch

        convolutions = [part for part in net.modules() if isinstance(part, torch.nn.Conv2d)]
        narrowest = min((part.out_channels for part in convolutions), default=0)
        net = net.to(self.torch_device)
        return _laid_out(net, torch.channels_last) if narrowest >= LEAST_CHANNELS else net

    def autocast(self) -> AbstractContextManager[object]:
        import torch

        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=self._wants_bf16())

    def _wants_bf16(self) -> bool:
        import torch

        if self.precision != "auto":
            return self.precision == "bf16"
        if self.torch_device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return has_fast_bf16()


@cache
def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX512-BF16 or AMX); torch emulates it elsewhere."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def trained(net: Net) -> Net:
    """The network on the CPU and in torch's usual layout, as it is when it is opened from a file: a run that goes on
    computes what an undisturbed one does."""
    import torch

    return _laid_out(net.cpu().eval(), torch.contiguous_format)


def _laid_out(net: Net, layout: torch.memory_format) -> Net:
    change: Any = net.to  # torch's annotations do not know the argument
    placed: Net = change(memory_format=layout)
    return placed


def use_threads(count: int) -> None:
    """Let torch use ``count`` threads in this process, but no more than there are cores, nor than ``OMP_NUM_THREADS``.

    Threads without a core of their own spend their time waiting for each other, and who sets that variable shares the
    cores with somebody.
    """
    import torch

    torch.set_num_threads(max(1, min(count, usable_cores(), _wished())))


def _wished() -> int:
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return int(wish) if wish.isascii() and wish.isdigit() and int(wish) else sys.maxsize
