"""A small ViT and small tasks for it, generated from a seed."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from fedstill.models.vit.task_bank import TaskParameters

LAYERS, WIDTH, PATCHES = 4, 32, 16


def tiny_trunk(seed: int = 0, **options: Any) -> VisionTransformer:
    """16 patches, 4 layers, 32 wide; weights drawn so that heads and prompts matter."""
    settings: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "num_classes": 7,
        "embed_dim": WIDTH,
        "depth": LAYERS,
    }
    trunk = VisionTransformer(**{**settings, "num_heads": 4, **options}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 or name.endswith("bias"):  # drawn from the global generator so far
                parameter.copy_(noise * 0.15)
            else:
                parameter.add_(noise * 0.1)
    return trunk


def images(count: int, seed: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def task(
    classes: int, seed: int, prompts: tuple[int, ...] = (2,), layers: int = LAYERS, width: int = WIDTH
) -> TaskParameters:
    generator = torch.Generator().manual_seed(seed)
    return TaskParameters(
        tuple(f"class{number}" for number in range(classes)),
        torch.randn(classes, width, generator=generator),
        torch.randn(classes, generator=generator),
        {count: torch.randn(layers, count, width, generator=generator) for count in prompts},
    )
