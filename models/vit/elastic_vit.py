"""One Vision Transformer that is faster or more accurate per call: timm's, with tokens merged and prompts added.

The trunk is timm's own module, so any of its ViT / DeiT state dicts loads with its own key names. A batch may mix
tasks, because prompts come per row and heads are applied per row (``task_bank.py``). With nothing merged and no
prompts the result is timm's. Source: thesis Section 3.3.2 and Figure 3.6.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from fedstill.models.vit.coarse_patches import embed_coarsely
from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess
from fedstill.models.vit.schedules import (
    PromptMode,
    TokenSchedule,
    check_distinct,
    constant_schedule,
    first_patches,
)
from fedstill.models.vit.token_merging import bipartite_match, merge, size_bias


class ElasticViT(nn.Module):
    """A timm ViT whose number of tokens is chosen per call.

    Args:
        trunk: plain ViT or DeiT (no distillation head, no rotary or differential attention), pooled by its
            class token or by the mean of its patches.
        proportional_attention: weigh a merged token by its size in attention. Right for ordinary supervised weights;
            weights pre-trained as masked autoencoders do without (ToMe, arXiv 2210.09461).
        preprocess: how the weights expect pictures; heads and prompts are trained with it.

    Raises:
        ValueError: a trunk of another kind, saying which part is not supported.
    """

    def __init__(
        self,
        trunk: VisionTransformer,
        proportional_attention: bool = True,
        preprocess: Preprocess = PLAIN,
    ) -> None:
        super().__init__()
        _check_trunk(trunk)
        self.trunk = trunk
        self.preprocess = preprocess
        self.proportional_attention = proportional_attention
        first = cast(Block, trunk.blocks[0])
        self.heads = int(cast(Attention, first.attn).num_heads)
        self.hidden = int(cast(nn.Linear, cast(Mlp, first.mlp).fc1).out_features)

    @property
    def layers(self) -> int:
        return len(self.trunk.blocks)

    @property
    def width(self) -> int:
        return int(self.trunk.embed_dim)

    @property
    def patches(self) -> int:
        """Tokens of an image at the weights' own patch size, all of which may merge."""
        return int(self.trunk.patch_embed.num_patches)

    @property
    def protected(self) -> int:
        """Class and register tokens, which never merge."""
        return int(self.trunk.num_prefix_tokens)

    @property
    def image_size(self) -> int:
        return int(self.trunk.patch_embed.img_size[0])

    def forward(
        self, images: Tensor, schedule: TokenSchedule | None = None, prompts: Tensor | None = None
    ) -> Tensor:
        """Logits of the trunk's own head, (batch, num_classes); arguments as for :meth:`features`."""
        logits: Tensor = self.trunk.head(self.features(images, schedule, prompts))
        return logits

    def features(
        self, images: Tensor, schedule: TokenSchedule | None = None, prompts: Tensor | None = None
    ) -> Tensor:
        """Pooled, normalised features, the input of a head.

        Args:
            images: float (batch, 3, image_size, image_size), normalised as the weights require.
            schedule: nothing is merged or added by default.
            prompts: (batch, layers, schedule.prompts, width), each row its own task's; needed if and only if
                the schedule has prompts.

        Returns:
            (batch, width).

        Raises:
            ValueError: images of another size, a schedule for another number of layers or with more patches than
                the weights have, or prompts that do not fit it.
        """
        schedule = schedule or constant_schedule(0, self.layers)
        self._check_call(images, schedule, prompts)
        tokens = self._embed(images, schedule.grid)
        patches = first_patches(schedule, self.patches)
        front = self.protected  # tokens before the patches: protected ones, then prompts
        size: Tensor | None = None  # patches that each patch token stands for; None while that is 1
        for layer, block in enumerate(cast(list[Block], self.trunk.blocks)):
            if prompts is not None:
                tokens = _add_prompts(tokens, prompts[:, layer], self.protected, front, schedule.prompt_mode)
                front = tokens.shape[1] - (patches if size is None else size.shape[1])
            tokens, size = self._block(block, tokens, front, size, schedule.merges[layer])
        return self._pool(tokens, front, size)

    def _embed(self, images: Tensor, grid: int) -> Tensor:
        if grid:
            return embed_coarsely(self.trunk, images, grid)
        tokens: Tensor = self.trunk.norm_pre(self.trunk._pos_embed(self.trunk.patch_embed(images)))
        return tokens

    def _block(
        self, block: Block, tokens: Tensor, front: int, size: Tensor | None, wanted: int
    ) -> tuple[Tensor, Tensor | None]:
        """One layer: attention, merging of at most ``wanted`` pairs, MLP."""
        weigh = size is not None and self.proportional_attention
        bias = size_bias(size, front, tokens.dtype) if size is not None and weigh else None
        attended, keys = _attention(cast(Attention, block.attn), block.norm1(tokens), bias)
        tokens = tokens + block.ls1(attended)
        merged = min(wanted, (tokens.shape[1] - front) // 2)
        if merged:
            patches = tokens[:, front:]
            if size is None:
                size = torch.ones(patches.shape[:2], device=tokens.device)
            match = bipartite_match(keys[:, :, front:].float().mean(dim=1), merged)
            patches, size = merge(patches, size, match)
            tokens = torch.cat((tokens[:, :front], patches), dim=1)
        return tokens + block.ls2(block.mlp(block.norm2(tokens))), size

    def _pool(self, tokens: Tensor, front: int, size: Tensor | None) -> Tensor:
        trunk = self.trunk
        if trunk.global_pool == "token":
            pooled = trunk.norm(tokens[:, 0])
        else:
            patches = trunk.norm(tokens[:, front:])
            # A merged token counts for all its patches.
            pooled = patches.mean(dim=1) if size is None else _weighted_mean(patches, size)
        features: Tensor = trunk.fc_norm(pooled)
        return features

    def _check_call(self, images: Tensor, schedule: TokenSchedule, prompts: Tensor | None) -> None:
        if tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise ValueError(f"images: shape {tuple(images.shape)}, not (batch, 3, {self.image_size}, ...)")
        if len(schedule.merges) != self.layers:
            raise ValueError(f"schedule: {len(schedule.merges)} layers, the network has {self.layers}")
        if schedule.grid:
            check_distinct((schedule,), self.patches)
        if prompts is None and schedule.prompts:
            raise ValueError(f"prompts: the schedule adds {schedule.prompts}, none were given")
        wanted = (len(images), self.layers, schedule.prompts, self.width)
        if prompts is not None and tuple(prompts.shape) != wanted:
            raise ValueError(f"prompts: shape {tuple(prompts.shape)}, the schedule needs {wanted}")


def _attention(attention: Attention, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Multi-head self-attention (batch, n, width) -> the same, and its keys (batch, heads, n, head width)."""
    batch, count, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(batch, count, 3, attention.num_heads, attention.head_dim)
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    mixed = attention.norm(mixed.transpose(1, 2).reshape(batch, count, attention.attn_dim))
    return attention.proj(mixed), keys


def _add_prompts(tokens: Tensor, prompts: Tensor, protected: int, front: int, mode: PromptMode) -> Tensor:
    """Insert prompts behind the protected tokens, in place of the last layer's or in front of them."""
    rest = front if mode == "replace" else protected
    return torch.cat((tokens[:, :protected], prompts.to(tokens.dtype), tokens[:, rest:]), dim=1)


def _weighted_mean(patches: Tensor, size: Tensor) -> Tensor:
    """(batch, n, width) and sizes (batch, n) -> (batch, width)."""
    shares = (size / size.sum(dim=1, keepdim=True)).unsqueeze(-1)
    return (patches * shares.to(patches.dtype)).sum(dim=1)


def _check_trunk(trunk: VisionTransformer) -> None:
    if type(trunk) is not VisionTransformer:
        raise ValueError(f"trunk: {type(trunk).__name__} is not a plain VisionTransformer")
    if trunk.global_pool not in ("token", "avg") or trunk.pool_include_prefix:
        raise ValueError(f"trunk: pooling {trunk.global_pool!r} is not supported: use token or avg")
    for block in trunk.blocks:
        if type(block) is not Block:  # of another kind, such as parallel ones: other parts, other names
            raise ValueError(f"trunk: {type(block).__name__} is not supported: use plain blocks")
        if type(block.attn) is not Attention or type(block.mlp) is not Mlp:
            parts = f"{type(block.mlp).__name__} with {type(block.attn).__name__}"
            raise ValueError(f"trunk: {parts} is not supported: use plain attention and MLP")
        if block.attn.gate is not None:
            raise ValueError("trunk: gated attention is not supported")
