"""The position embedding for another size of pictures, resampled as timm does."""

from __future__ import annotations

import math

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor


def grid_side(positions: Tensor, prefix_tokens: int) -> int:
    """Patches per side of (1, prefix tokens + patches, width). Raises ValueError if they are no square."""
    patches = positions.shape[1] - prefix_tokens if positions.ndim == 3 else -1
    side = math.isqrt(max(0, patches))
    if side < 1 or side * side != patches:
        raise ValueError(f"pos_embed {tuple(positions.shape)} is not that of a square of patches")
    return side


def resize_positions(positions: Tensor, side: int, prefix_tokens: int) -> Tensor:
    """For side x side patches, bicubic and antialiased; the prefix tokens' stay as they are."""
    old = grid_side(positions, prefix_tokens)
    if old == side:
        return positions
    resized: Tensor = resample_abs_pos_embed(
        positions, new_size=[side, side], old_size=[old, old], num_prefix_tokens=prefix_tokens
    )
    return resized
