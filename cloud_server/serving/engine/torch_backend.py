"""The trunk in torch: eager, with the linear layers as they are or packed; on CUDA as captured graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedstill.cloud_server.serving.engine.captured_forward import CapturedForward
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule


class TorchBackend:
    """A :class:`Backend`.

    Args:
        net: for inference, on ``device`` and of ``dtype``.
    """

    int8 = False

    def __init__(self, net: ElasticViT, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._net = net
        self._graphs: dict[TokenSchedule, dict[int, CapturedForward]] = {}

    def warm_up(self, schedule: TokenSchedule, sizes: Sequence[int]) -> None:
        """Run each size once, or capture it as a graph on CUDA; the largest first, for the allocator."""
        for size in sorted(sizes, reverse=True):
            images = self._zeros(size, 3, self._net.image_size, self._net.image_size)
            shape = (size, self._net.layers, schedule.prompts, self._net.width)
            prompts = self._zeros(*shape) if schedule.prompts else None
            if self.device.type == "cuda":
                captured = CapturedForward(self._net, images, schedule, prompts)
                self._graphs.setdefault(schedule, {})[size] = captured
            else:
                self._net.features(images, schedule, prompts)

    def features(self, images: Tensor, schedule: TokenSchedule, prompts: Tensor | None) -> Tensor:
        """See :class:`Backend`; a graph takes batches of up to its own size."""
        on_device = images.to(self.device, self.dtype)
        graphs = self._graphs.get(schedule, {})
        large_enough = [size for size in graphs if size >= len(images)]
        if not large_enough:
            return self._net.features(on_device, schedule, prompts)
        return graphs[min(large_enough)](on_device, prompts)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=self.dtype)
