"""Tasks with nothing to train: a fine-tuned network's own head on its own trunk, or the trunk's feature itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fedstill.cloud_server.serving.engine.nearest import nearest_right
from fedstill.cloud_server.serving.engine.trunk import Trunk, TrunkError
from fedstill.cloud_server.serving.tasks.prompt_training import extract_features
from fedstill.datasets.images.image_tasks import ImageTask
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.models.vit.task_outputs import Output


def own_task(trunk: Trunk) -> TaskParameters:
    """The head that came with the weights. Raises TrunkError for weights without one, or without names of classes."""
    if trunk.card is None:
        raise TrunkError(
            f"--own-head: nothing beside {trunk.architecture} names its classes: import it with: fedstill import"
        )
    head = trunk.net.trunk.head
    if not isinstance(head, nn.Linear):
        raise TrunkError(f"--own-head: {trunk.architecture} was imported without a head")
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    output: Output = "labels" if trunk.card.multi_label else "classes"
    return TaskParameters(trunk.card.class_names, weight, bias, {}, trunk.net.preprocess, output)


def measured_accuracy(
    net: ElasticViT,
    task: TaskParameters,
    images: ImageTask,
    limit: int | None,
    seed: int,
    count: Callable[[int, int], None],
) -> float:
    """Share of the validation images of which the largest logit, or the nearest other embedding, is right.

    Args:
        images: with the task's classes, see :meth:`ImageTask.with_classes`.
        limit, seed: of :meth:`ImageTask.load`.
        count: called with images done and in all.
    """
    chosen = images.load("val", limit, seed)
    features = extract_features(net, chosen.images, progress=count)
    if task.output == "embedding":
        return float(nearest_right(features.numpy(), features.numpy(), chosen.labels).mean())
    best = (features @ task.head_weight.T + task.head_bias).argmax(dim=1).numpy()
    return float((best == chosen.labels).mean())
