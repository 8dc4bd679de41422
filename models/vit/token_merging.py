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
    starts = _starts(metric)
    odd, even = (_rows(unit, _every_second(metric, first) + starts) for first in (1, 0))
    best, nearest = (odd @ even.transpose(1, 2)).max(dim=-1)  # (batch, sources)
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone = order[:, :merged]
    return Match(order[:, merged:].sort(dim=-1).values, gone, _rows(nearest, gone + _starts(nearest)))


def merge(tokens: Tensor, size: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """Average each merged token into its destination, weighted by the number of patches that each represents.

    Args:
        tokens: (batch, n, width).
        size: float32 (batch, n), patches per token.

    Returns:
        (batch, n - merged, width), first the sources that stay, then the destinations, and their sizes; the sum of the
        sizes, and of size x token, is unchanged (up to rounding).
    """
    starts = _starts(tokens)
    places = (2 * match.kept + (starts + 1), _every_second(tokens, 0) + starts, 2 * match.gone + (starts + 1))
    kept, destinations, gone = ((_rows(tokens, one), _rows(size, one)) for one in places)
    # A small dense product instead of scattered additions: row d holds the share of each merged token in d.
    columns = torch.arange(destinations[1].shape[1], device=tokens.device)
    arrivals = (match.into.unsqueeze(-1) == columns) * gone[1].unsqueeze(-1)
    merged_size = destinations[1] + arrivals.sum(dim=1)
    share = (arrivals / merged_size.unsqueeze(1)).transpose(1, 2).to(tokens.dtype)
    stays = (destinations[1] / merged_size).unsqueeze(-1).to(tokens.dtype)
    averaged = torch.baddbmm(destinations[0] * stays, share, gone[0])
    return torch.cat((kept[0], averaged), dim=1), torch.cat((kept[1], merged_size), dim=1)


def size_bias(size: Tensor, protected: int, dtype: torch.dtype) -> Tensor:
    """Proportional attention: the term to add to all attention scores, log(size) of the key (paper, Eq. 1).

    Returns:
        (batch, 1, 1, protected + n) in ``dtype``; protected tokens stand for themselves, so theirs is 0.
    """
    return F.pad(size.log(), (protected, 0)).to(dtype)[:, None, None, :]


def _every_second(tokens: Tensor, first: int) -> Tensor:
    """Their positions, int64 (k,)."""
    return torch.arange(first, tokens.shape[1], 2, dtype=torch.int64, device=tokens.device)


def _starts(values: Tensor) -> Tensor:
    """Of (batch, n, ...), if the rows of all its members are counted through: int64 (batch, 1)."""
    batch, count = values.shape[:2]
    return count * torch.arange(batch, dtype=torch.int64, device=values.device).unsqueeze(-1)


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """(batch, n, ...), int64 (batch, k) -> (batch, k, ...), by places among the rows of all members.

    Whole rows are copied so. In compiled graphs that is several times as fast as a gather with an index for each value,
    or a slice with a step.
    """
    chosen = values.flatten(0, 1).index_select(0, places.flatten())
    return chosen.reshape(*places.shape, *values.shape[2:])
