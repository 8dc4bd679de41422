"""Merging loses tokens, never mass, and picks the pairs that are most alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedstill.models.vit.token_merging import bipartite_match, merge, size_bias


@st.composite
def sequences(draw):
    """(tokens, size, merged) of random shape, from a seed."""
    batch, count, width = draw(st.integers(1, 3)), draw(st.integers(2, 33)), draw(st.integers(2, 8))
    merged = draw(st.integers(1, count // 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens = torch.randn(batch, count, width, generator=generator)
    size = torch.randint(1, 9, (batch, count), generator=generator).float()
    return tokens, size, merged


@given(sequences())
def test_mass_is_conserved(case) -> None:
    tokens, size, merged = case
    fewer, larger = merge(tokens, size, bipartite_match(tokens, merged))
    assert fewer.shape == (tokens.shape[0], tokens.shape[1] - merged, tokens.shape[2])
    torch.testing.assert_close(larger.sum(1), size.sum(1))
    before, after = (tokens * size[..., None]).sum(1), (fewer * larger[..., None]).sum(1)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)


@given(sequences())
def test_every_source_is_kept_or_gone_once(case) -> None:
    tokens, _, merged = case
    match = bipartite_match(tokens, merged)
    both = torch.cat((match.kept, match.gone), dim=1).sort(dim=1).values
    assert (both == torch.arange(tokens.shape[1] // 2)).all()
    assert (match.kept.diff(dim=1) > 0).all()
    assert int(match.into.max()) < (tokens.shape[1] + 1) // 2


@given(sequences(), st.randoms(use_true_random=False))
def test_the_order_within_sources_and_within_destinations_does_not_matter(case, random) -> None:
    """Shuffling sources among themselves, and destinations among themselves, yields the same set of tokens."""
    tokens, size, merged = case
    count = tokens.shape[1]
    destinations, sources = list(range(0, count, 2)), list(range(1, count, 2))
    random.shuffle(destinations)
    random.shuffle(sources)
    order = torch.empty(count, dtype=torch.long)
    order[0::2], order[1::2] = torch.tensor(destinations), torch.tensor(sources)
    plain = merge(tokens, size, bipartite_match(tokens, merged))
    mixed = merge(tokens[:, order], size[:, order], bipartite_match(tokens[:, order], merged))
    for row in range(len(tokens)):
        one, other = (
            sorted(torch.cat((part[0][row], part[1][row, :, None]), dim=1).tolist())
            for part in (plain, mixed)
        )
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)


def test_the_most_alike_pair_merges_by_weight() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 5.0], [0.1, 2.0], [-1.0, -1.0]]])
    size = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    match = bipartite_match(tokens, 1)
    assert (match.kept.item(), match.gone.item(), match.into.item()) == (1, 0, 1)
    fewer, larger = merge(tokens, size, match)
    torch.testing.assert_close(fewer[0, 2], torch.tensor([0.1 / 4, (3 * 5.0 + 2.0) / 4]))
    assert larger.tolist() == [[1.0, 1.0, 4.0]]


def test_pairs_are_chosen_in_float32_where_bfloat16_would_tie() -> None:
    near = torch.tensor([1.0, 0.0])
    a_bit_off, further_off = torch.tensor([1.0, 0.02]), torch.tensor([1.0, 0.03])
    tokens = torch.stack((near, further_off, -near, a_bit_off))[None]
    coarse = tokens.bfloat16()
    cosines = (coarse[:, 1::2] @ coarse[:, 0:1].transpose(1, 2)).squeeze()
    assert cosines[0] == cosines[1]  # bfloat16 cannot tell them apart
    assert bipartite_match(coarse, 1).gone.item() == 1


def test_merging_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="not between 1 and 2, half of 5 tokens"):
        bipartite_match(torch.randn(1, 5, 3), 3)


def test_size_bias_is_the_logarithm_and_nothing_for_protected_tokens() -> None:
    bias = size_bias(torch.tensor([[1.0, 4.0]]), 2, torch.float32)
    assert bias.shape == (1, 1, 1, 4)
    torch.testing.assert_close(bias[0, 0, 0], torch.tensor([0.0, 0.0, 0.0, 4.0]).clamp(min=1).log())
