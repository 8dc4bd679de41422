"""One (schedule, batch size) of the trunk as a CUDA graph: a batch costs one launch instead of hundreds.

Only the trunk is captured. Prompts are copied into the graph's own buffer and heads are applied to its output, so a
hot swap of tasks needs no new capture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule

WARM_UPS = 3
"""Runs before the capture, in which libraries choose their algorithms and allocate memory."""


class CapturedForward:
    """``net.features`` for batches of at most ``len(images)`` rows; smaller ones are padded with the buffer's old
    content.

    Args:
        net: on a CUDA device, for inference.
        images, prompts: of the shape, device and dtype to capture; kept as the graph's buffers.
    """

    def __init__(
        self, net: ElasticViT, images: Tensor, schedule: TokenSchedule, prompts: Tensor | None
    ) -> None:
        self._images, self._prompts = images, prompts
        aside = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                net.features(images, schedule, prompts)
        torch.cuda.current_stream(images.device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(images.device), torch.cuda.graph(self._graph):
            self._features = net.features(images, schedule, prompts)

    def __call__(self, images: Tensor, prompts: Tensor | None) -> Tensor:
        """(rows, 3, size, size) -> (rows, width); valid until the next call."""
        self._images[: len(images)].copy_(images)
        if self._prompts is not None and prompts is not None:
            self._prompts[: len(prompts)].copy_(prompts)
        self._graph.replay()
        return self._features[: len(images)]
