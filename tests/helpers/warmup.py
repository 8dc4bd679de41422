"""A small net and pictures that warm-up learns in a few steps."""

from __future__ import annotations

import numpy as np
import torch

from fedstill.cloud_server.warmup.fine_tuning import FineTuneSettings
from fedstill.cloud_server.warmup.reduced_nets import task_net
from fedstill.datasets.images.image_tasks import ImageSet
from fedstill.models.vit.elastic_vit import ElasticViT
from helpers.vit import tiny_trunk

SETTINGS = FineTuneSettings(epochs=3, batch_size=6, learning_rate=3e-3, head_rate=3.0, patience=3)


def made_set(count: int = 24, seed: int = 0) -> ImageSet:
    """Three greys with noise: learnt in a few steps."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pictures = [
        np.clip(rng.normal((40, 215, 128)[label], 30, (32, 32, 3)), 0, 255).astype(np.uint8)
        for label in labels
    ]
    return ImageSet(tuple(pictures), labels.astype(np.int64))


def made_net() -> ElasticViT:
    generator = torch.Generator().manual_seed(3)
    return task_net(ElasticViT(tiny_trunk()), (torch.randn(3, 32, generator=generator) * 0.1, torch.zeros(3)))
