"""Token pruning in a form that the fine-tuning code can train, beside merging (``reduced_nets.py``)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedstill.cloud_server.warmup.reduced_nets import task_head
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.models.vit.token_pruning import PrunedViT, pruning_loss


class PruningNet:
    """A pruned network with the unpruned one as its teacher.

    Args:
        net: the task's network before pruning; it becomes the student, a copy of it the teacher.
        keep: share of the patches that are kept at each of three stages.
        seed: of the predictors' first weights and of the decisions that are sampled while training.
    """

    def __init__(self, net: ElasticViT, keep: float, seed: int = 0) -> None:
        self._seed = seed
        self._pruned = PrunedViT(net, keep, torch.Generator().manual_seed(seed))
        # Counted in the state dict, so that a resumed training draws the same numbers as an undisturbed one.
        self._pruned.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._teacher = copy.deepcopy(self._pruned).eval().requires_grad_(False)

    @property
    def _passes(self) -> Tensor:
        return self._pruned.get_buffer("passes")

    @property
    def module(self) -> nn.Module:
        return self._pruned

    @property
    def head(self) -> nn.Linear:
        return task_head(self._pruned.net)

    @property
    def image_size(self) -> int:
        return self._pruned.net.image_size

    @property
    def preprocess(self) -> Preprocess:
        return self._pruned.net.preprocess

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self._pruned(images)
        return logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed + 1 + int(self._passes))
        self._passes.add_(1)
        student = self._pruned.training_pass(images, generator)
        with torch.no_grad():
            teacher = self._teacher.to(images.device).teacher_pass(images)
        return pruning_loss(student, teacher, labels, self._pruned.keep)
