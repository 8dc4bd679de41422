"""A fully fine-tuned network as a task: its own head on its own trunk, with nothing to train."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fedstill.cloud_server.serving.engine.trunk import Trunk, TrunkError
from fedstill.cloud_server.serving.tasks.prompt_training import extract_features
from fedstill.datasets.images.image_tasks import ImageTask
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.task_bank import TaskParameters


def own_task(trunk: Trunk) -> TaskParameters:
    """The head that came with the weights. Raises TrunkError for weights without one, or without names of classes."""
    if trunk.card is None:
        raise TrunkError(
            f"--own-head: nothing beside {trunk.architecture} names its classes: import it with: fedstill import"
        )
    head = trunk.net.trunk.head
    if not isinstance(head, nn.Linear):
        raise TrunkError(f"--own-head: {trunk.architecture} was imported without a head")
    bias = head.bias.detach().clone()
    return TaskParameters(
        trunk.card.class_names, head.weight.detach().clone(), bias, {}, trunk.net.preprocess
    )


def own_accuracy(
    net: ElasticViT,
    head: TaskParameters,
    images: ImageTask,
    limit: int | None,
    seed: int,
    count: Callable[[int, int], None],
) -> float:
    """Share of the validation images of which the largest logit is right.

    Args:
        images: with the head's classes, see :meth:`ImageTask.with_classes`.
        limit, seed: of :meth:`ImageTask.load`.
        count: called with images done and in all.
    """
    chosen = images.load("val", limit, seed)
    features = extract_features(net, chosen.images, progress=count)
    best = (features @ head.head_weight.T + head.head_bias).argmax(dim=1).numpy()
    return float((best == chosen.labels).mean())
