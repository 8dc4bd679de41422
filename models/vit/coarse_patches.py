"""Larger patches, and so fewer tokens from the first layer on, out of the weights of small ones.

The patch embedding is linear, so "shrink a patch to the size that the weights know, then embed it" is one convolution
with a larger kernel: it costs what the small patches cost, whatever the grid. Nothing is trained. Flexible patch sizes
are from FlexiViT (Beyer et al., arXiv 2212.08013), which trains for them and inverts an enlargement; here the pixels
are averaged, which lost less without training (docs/results/reductions.md).
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


def embed_coarsely(trunk: VisionTransformer, images: Tensor, grid: int) -> Tensor:
    """Class token, registers and grid x grid patch tokens with their positions, before the first layer.

    Args:
        images: (batch, 3, size, size) of the trunk's size. A patch is size // grid pixels wide; the pixels that are
            left over are a margin on all sides, of at most grid / 2.
        grid: patches per side, no more than the weights' own.

    Returns:
        (batch, protected + grid x grid, width).
    """
    proj = cast(nn.Conv2d, trunk.patch_embed.proj)
    size = int(trunk.patch_embed.img_size[0])
    pixels = size // grid
    margin = (size - pixels * grid) // 2
    inside = slice(margin, margin + pixels * grid)
    kernel = coarse_kernel(proj.weight, pixels)
    patches = F.conv2d(images[:, :, inside, inside], kernel, proj.bias, stride=pixels)
    patches = trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2))
    rows = patches.shape[0]  # len() would be a constant of a traced graph
    prefix = [token for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    front = [token.expand(rows, -1, -1) for token in prefix]
    if trunk.pos_embed is None:
        tokens = torch.cat((*front, patches), dim=1)
    elif trunk.no_embed_class:  # positions are the patches' alone
        tokens = torch.cat((*front, patches + coarse_positions(trunk.pos_embed, 0, grid)), dim=1)
    else:
        positions = coarse_positions(trunk.pos_embed, int(trunk.num_prefix_tokens), grid)
        tokens = torch.cat((*front, patches), dim=1) + positions
    placed: Tensor = trunk.norm_pre(trunk.pos_drop(tokens))
    return placed


def coarse_kernel(weight: Tensor, pixels: int) -> Tensor:
    """The kernel that answers a patch of pixels x pixels as ``weight`` answers that patch after shrinking it.

    weight: (width, channels, patch, patch), patch <= pixels. Returns (width, channels, pixels, pixels).
    """
    shrink = shrinking(pixels, int(weight.shape[-1])).to(weight.device)
    return (shrink.T @ weight.float() @ shrink).to(weight.dtype)


def coarse_positions(positions: Tensor, front: int, grid: int) -> Tensor:
    """Position embeddings (1, front + side x side, width) -> (1, front + grid x grid, width); the first are kept."""
    count, width = int(positions.shape[1]), int(positions.shape[2])  # of a traced tensor they are tensors
    side = round((count - front) ** 0.5)
    shrink = shrinking(side, grid).to(positions.device)
    rows = shrink @ positions[0, front:].float().reshape(side, side * width)
    both = shrink @ rows.reshape(grid, side, width)
    return torch.cat((positions[:, :front], both.reshape(1, grid**2, width).to(positions.dtype)), dim=1)


def shrinking(before: int, after: int) -> Tensor:
    """The matrix, float32 (after, before), that resizes a row of values: bilinear with antialiasing.

    Equal to ``torch.nn.functional.interpolate``'s. Made by numpy, so that a traced graph holds it as a constant.
    """
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    distances = np.abs(np.arange(before) + 0.5 - centres[:, None]) / scale
    triangle = np.maximum(0.0, 1.0 - distances)
    return torch.from_numpy((triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32))
