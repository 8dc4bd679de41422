"""Deep visual prompts (VPT-deep, arXiv 2203.12119): learnt tokens for every layer, in growing numbers.

Section 3.4.1 of the thesis trains a small set of prompts first and starts a larger one from it, so this file has only
the two ways in which a set begins; the training itself is ``cloud_server/serving/tasks/prompt_training.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def new_prompts(layers: int, count: int, width: int, patch_inputs: int, generator: torch.Generator) -> Tensor:
    """Uniformly drawn prompts, float32 (layers, count, width).

    patch_inputs: values of one image patch (3 x 16 x 16 = 768). The range is Xavier's for a layer from a patch to
    a token, sqrt(6 / (patch_inputs + width)), so that prompts begin as large as embedded patches do.
    """
    limit = math.sqrt(6.0 / (patch_inputs + width))
    return torch.empty(layers, count, width).uniform_(-limit, limit, generator=generator)


def grow_prompts(small: Tensor, fresh: Tensor) -> Tensor:
    """The trained ``small`` set first, then the last of ``fresh``: iterative prompt learning, Section 3.4.1.

    Both are (layers, count, width). Raises ValueError if ``fresh`` is not larger, or of another network.
    """
    (layers, had, width), (fresh_layers, count, fresh_width) = small.shape, fresh.shape
    if (layers, width) != (fresh_layers, fresh_width) or count <= had:
        raise ValueError(f"prompts: {tuple(small.shape)} cannot grow into {tuple(fresh.shape)}")
    return torch.cat((small, fresh[:, had:]), dim=1)
