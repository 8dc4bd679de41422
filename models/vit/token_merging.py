"""Token merging as small pure functions: which tokens are similar, and how they are merged.

Written from the paper "Token Merging: Your ViT But Faster" (Bolya et al., arXiv 2210.09461, Sections 3 and
appendix D). Protected tokens (class, registers, prompts) are removed before a sequence reaches these functions, so
nothing here handles them. Scores are always float32: in bfloat16 ties are common, and a tie decides which token
disappears.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Match(NamedTuple):
    """Which tokens merge into which, of n mergeable tokens: destinations are tokens 0, 2, 4, ..., sources 1, 3, 5, ...

    Attributes:
        kept: int64 (batch, sources - merged), positions among the sources that stay, ascending.
        gone: int64 (batch, merged), positions among the sources that merge away.
        into: int64 (batch, merged), the destination of each ``gone``, a position among the destinations.
    """

    kept: Tensor
    gone: Tensor
    into: Tensor


def bipartite_match(metric: Tensor, merged: int) -> Match:
    """Pair every second token with its most similar neighbour set member; the ``merged`` best pairs merge.

    Args:
        metric: (batch, n, width), the basis of the cosine similarity: attention keys, mean over the heads.
        merged: pairs to merge, 1 <= merged <= n // 2.

    Raises:
        ValueError: more pairs than there are sources.
    """
    sources = metric.shape[1] // 2
    if not 0 < merged <= sources:
        raise ValueError(f"merged: {merged} is not between 1 and {sources}, half of {metric.shape[1]} tokens")
    unit = F.normalize(metric.float(), dim=-1)
    best, nearest = (unit[:, 1::2] @ unit[:, 0::2].transpose(1, 2)).max(dim=-1)  # (batch, sources)
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone = order[:, :merged]
    return Match(order[:, merged:].sort(dim=-1).values, gone, nearest.gather(1, gone))


def merge(tokens: Tensor, size: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """Average each merged token into its destination, weighted by the number of patches that each represents.

    Args:
        tokens: (batch, n, width).
        size: float32 (batch, n), patches per token.

    Returns:
        (batch, n - merged, width), first the sources that stay, then the destinations, and their sizes; the sum of the
        sizes, and of size x token, is unchanged (up to rounding).
    """
    sources, destinations = tokens[:, 1::2], tokens[:, 0::2]
    source_size, destination_size = size[:, 1::2], size[:, 0::2]
    gone_size = source_size.gather(1, match.gone)
    merged_size = destination_size.scatter_add(1, match.into, gone_size)
    # A small dense product instead of scattered additions: row d holds the share of each merged token in d.
    columns = torch.arange(destinations.shape[1], device=tokens.device)
    arrivals = (match.into.unsqueeze(-1) == columns) * gone_size.unsqueeze(-1)
    share = (arrivals / merged_size.unsqueeze(1)).transpose(1, 2).to(tokens.dtype)
    stays = (destination_size / merged_size).unsqueeze(-1).to(tokens.dtype)
    averaged = torch.baddbmm(destinations * stays, share, _rows(sources, match.gone))
    return (
        torch.cat((_rows(sources, match.kept), averaged), dim=1),
        torch.cat((source_size.gather(1, match.kept), merged_size), dim=1),
    )


def size_bias(size: Tensor, protected: int, dtype: torch.dtype) -> Tensor:
    """Proportional attention: the term to add to all attention scores, log(size) of the key (paper, Eq. 1).

    Returns:
        (batch, 1, 1, protected + n) in ``dtype``; protected tokens stand for themselves, so theirs is 0.
    """
    return F.pad(size.log(), (protected, 0)).to(dtype)[:, None, None, :]


def _rows(tokens: Tensor, positions: Tensor) -> Tensor:
    """(batch, n, width), int64 (batch, k) -> (batch, k, width)."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
