"""Token pruning after DynamicViT: small predictors decide after some layers which patches are kept.

Written from the paper (Rao et al., "DynamicViT", arXiv 2106.02034, Sections 3.2 to 3.4). While training nothing is
removed: decisions are straight-through samples, and dropped tokens are masked out of attention, so that gradients reach
the predictors. When serving, the best tokens are gathered and the rest is removed.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from fedstill.models.vit.elastic_vit import ElasticViT

STAGES = 3
SMALLEST = 1e-6


class TokenPredictor(nn.Module):
    """Keep or drop, per patch: from the token itself and from all kept tokens together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.inside = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * half), nn.GELU())
        self.outside = nn.Sequential(
            nn.Linear(2 * half, half),
            nn.GELU(),
            nn.Linear(half, half // 2),
            nn.GELU(),
            nn.Linear(half // 2, 2),
        )

    def forward(self, patches: Tensor, kept: Tensor) -> Tensor:
        """(batch, n, width), mask (batch, n) -> log probabilities (batch, n, 2) to keep and to drop."""
        local, together = self.inside(patches).chunk(2, dim=-1)
        weights = kept.unsqueeze(-1)
        mean = (together * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp_min(
            SMALLEST
        )
        decision: Tensor = self.outside(torch.cat((local, mean.expand_as(together)), dim=-1))
        return F.log_softmax(decision, dim=-1)


class MaskedPass(NamedTuple):
    """The outputs of a training pass.

    logits: (batch, classes). attention: (batch, n), the last layer's attention of the class token to the patches, mean
    over heads. masks: one per stage, (batch, n), 0 or 1 with the gradient of the probabilities.
    """

    logits: Tensor
    attention: Tensor
    masks: tuple[Tensor, ...]


class PrunedViT(nn.Module):
    """An elastic ViT that loses all but ``keep`` of its patches at each of three places in its depth.

    Args:
        net: with the task's own head, pooled by its class token.
        keep: share of the patches kept at each stage; after the third, keep cubed of them remain.
        generator: draws the predictors' first weights.

    Raises:
        ValueError: ``keep`` is not a share, or the trunk is too shallow or pools in another way.
    """

    def __init__(self, net: ElasticViT, keep: float, generator: torch.Generator) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"keep: {keep} is not a share above 0")
        if net.layers <= STAGES or net.trunk.global_pool != "token":
            raise ValueError("pruning: needs more than three layers and a class token to pool by")
        self.net = net
        self.keep = keep
        self.places = tuple(net.layers * stage // (STAGES + 1) for stage in range(1, STAGES + 1))
        self.predictors = nn.ModuleList(TokenPredictor(net.width) for _ in self.places)
        for module in self.predictors.modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.zeros_(module.bias)

    def left(self, stage: int) -> int:
        """Patches kept after stage 1, 2 or 3, at least one."""
        return max(1, round(self.keep**stage * self.net.patches))

    def forward(self, images: Tensor) -> Tensor:
        """Logits with the less useful tokens really removed."""
        trunk, front = self.net.trunk, self.net.protected
        tokens = self._embed(images)
        for layer, block in enumerate(cast(list[Block], trunk.blocks)):
            if layer in self.places:
                stage = self.places.index(layer)
                patches = tokens[:, front:]
                scores = self.predictors[stage](patches, torch.ones_like(patches[..., 0]))[..., 0]
                best = (
                    scores.topk(min(self.left(stage + 1), patches.shape[1]), dim=1).indices.sort(dim=1).values
                )
                gathered = patches.gather(1, best.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
                tokens = torch.cat((tokens[:, :front], gathered), dim=1)
            tokens = block(tokens)
        return self._classify(tokens)

    def training_pass(self, images: Tensor, generator: torch.Generator) -> MaskedPass:
        """Logits with sampled decisions, nothing removed. generator: on the CPU, draws the samples."""
        return self._masked(images, generator)

    def teacher_pass(self, images: Tensor) -> MaskedPass:
        """The same with every token kept: logits and attention of this network as a teacher."""
        return self._masked(images, None)

    def _masked(self, images: Tensor, generator: torch.Generator | None) -> MaskedPass:
        front = self.net.protected
        tokens = self._embed(images)
        kept = torch.ones_like(tokens[:, front:, 0])
        masks: list[Tensor] = []
        attention = kept
        for layer, block in enumerate(cast(list[Block], self.net.trunk.blocks)):
            if layer in self.places and generator is not None:
                chances = self.predictors[len(masks)](tokens[:, front:], kept)
                kept = kept * _sample(chances, generator)  # dropped tokens stay dropped
                masks.append(kept)
            visible = F.pad(kept, (front, 0), value=1.0) if masks else None
            attended, weights = masked_attention(cast(Attention, block.attn), block.norm1(tokens), visible)
            tokens = tokens + block.ls1(attended)
            tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
            attention = weights[:, :, 0, front:].mean(dim=1)
        return MaskedPass(self._classify(tokens), attention, tuple(masks))

    def _embed(self, images: Tensor) -> Tensor:
        trunk = self.net.trunk
        tokens: Tensor = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(images)))
        return tokens

    def _classify(self, tokens: Tensor) -> Tensor:
        trunk = self.net.trunk
        logits: Tensor = trunk.head(trunk.fc_norm(trunk.norm(tokens[:, 0])))
        return logits


def masked_attention(attention: Attention, tokens: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """Self-attention in which a token sees itself and what is visible (paper, Eq. 10 and 11).

    Args:
        tokens: (batch, n, width).
        visible: (batch, n), 0 or 1; None for all.

    Returns:
        (batch, n, width), and the weights (batch, heads, n, n).
    """
    batch, count, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(batch, count, 3, attention.num_heads, attention.head_dim)
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    scores = (queries * attention.scale) @ keys.transpose(-2, -1)
    if visible is None:
        weights = scores.softmax(dim=-1)
    else:
        itself = torch.eye(count, device=tokens.device, dtype=tokens.dtype)
        seen = (visible[:, None, None, :] * (1 - itself) + itself).to(scores.dtype)
        powers = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp() * seen
        weights = powers / powers.sum(dim=-1, keepdim=True).clamp_min(SMALLEST)
    mixed = attention.norm((weights @ values).transpose(1, 2).reshape(batch, count, attention.attn_dim))
    return attention.proj(mixed), weights


def pruning_loss(student: MaskedPass, teacher: MaskedPass, labels: Tensor, keep: float) -> Tensor:
    """The loss: right answers, the target shares of tokens, and the unpruned teacher's logits and attention.

    Weights are the paper's (Section 3.3) for the shares (2) and the logits (0.5). Its feature distillation is replaced
    by one of attention: over the remaining tokens, the class token should attend to the same ones as the teacher's.
    """
    shares = [mask.mean(dim=1) - keep ** (at + 1) for at, mask in enumerate(student.masks)]
    ratio = torch.stack([share.square().mean() for share in shares]).mean()
    logits = F.kl_div(
        F.log_softmax(student.logits.float(), dim=-1),
        F.log_softmax(teacher.logits.float(), dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    left = student.masks[-1].detach() + SMALLEST  # an image may have lost all of its patches
    wanted, seen = (_shares(one.attention.float() * left) for one in (teacher, student))
    attention = (wanted * (wanted.clamp_min(SMALLEST) / seen.clamp_min(SMALLEST)).log()).sum(dim=1).mean()
    return F.cross_entropy(student.logits.float(), labels) + 2.0 * ratio + 0.5 * logits + 0.5 * attention


def _shares(values: Tensor) -> Tensor:
    return values / values.sum(dim=1, keepdim=True).clamp_min(SMALLEST)


def _sample(chances: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel-softmax, straight through: (batch, n, 2) log probabilities -> (batch, n), 1 for keep."""
    uniform = torch.rand(chances.shape, generator=generator).clamp(SMALLEST, 1 - SMALLEST)
    soft = (chances - (-uniform.log()).log().to(chances)).softmax(dim=-1)[..., 0]
    hard = (soft > 0.5).to(soft.dtype)
    return hard - soft.detach() + soft
