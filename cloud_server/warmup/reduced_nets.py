"""A task's network with token reduction in its forward pass, for the fine-tuning code.

Fine-tuning needs only logits and a loss from a reduction method, so merging (here) and pruning
(``models/vit/token_pruning.py``) are trained by the same code.
"""

from __future__ import annotations

import copy
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.models.vit.schedules import TokenSchedule


class ReducedNet(Protocol):
    """A network that can be fine-tuned: an ``nn.Module`` that reduces tokens in its forward pass.

    Implemented by ``MergingNet`` and ``pruning_net.PruningNet``.
    """

    @property
    def module(self) -> nn.Module:
        """The network whose parameters are trained and stored."""

    @property
    def head(self) -> nn.Linear:
        """The classifier, which learns at its own rate."""

    @property
    def image_size(self) -> int: ...

    @property
    def preprocess(self) -> Preprocess: ...

    def logits(self, images: Tensor) -> Tensor:
        """(batch, 3, image_size, image_size) -> (batch, classes), as in serving."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""


class MergingNet:
    """An elastic ViT that always runs at one schedule; ``net``'s own head classifies."""

    def __init__(self, net: ElasticViT, schedule: TokenSchedule) -> None:
        self._net = net
        self._schedule = schedule

    @property
    def module(self) -> nn.Module:
        return self._net

    @property
    def head(self) -> nn.Linear:
        return task_head(self._net)

    @property
    def image_size(self) -> int:
        return self._net.image_size

    @property
    def preprocess(self) -> Preprocess:
        return self._net.preprocess

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self._net(images, self._schedule)
        return logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images).float(), labels)


def task_net(trunk: ElasticViT, head: tuple[Tensor, Tensor]) -> ElasticViT:
    """A copy of ``trunk`` with the task's head in place of its own, ready to be trained.

    head: weight (classes, width) and bias (classes,).
    """
    net = copy.deepcopy(trunk)
    net.trunk.reset_classifier(len(head[0]))
    net.requires_grad_(True)
    own = task_head(net)
    own.weight.data.copy_(head[0])
    own.bias.data.copy_(head[1])
    return net


def task_head(net: ElasticViT) -> nn.Linear:
    """The linear classifier of a task's network."""
    head = net.trunk.head
    if not isinstance(head, nn.Linear):
        raise ValueError("net: has no linear head: make it with task_net")
    return head
