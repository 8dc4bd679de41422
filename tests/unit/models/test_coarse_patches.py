"""Larger patches give what timm gives for the shrunken picture, with positions resized alike, and cost no training."""

from __future__ import annotations

import pytest
import torch
from helpers.vit import LAYERS, PATCHES, images, tiny_trunk
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fedstill.models.vit.coarse_patches import coarse_kernel, coarse_positions, embed_coarsely, shrinking
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule, parse_schedule


@given(st.integers(1, 40), st.integers(0, 40))
def test_shrinking_is_the_antialiased_resize_of_torch(after: int, more: int) -> None:
    row = torch.randn(1, 1, 1, after + more, generator=torch.Generator().manual_seed(0))
    # In 64 bits: in 32 the library itself is off by up to 1.2e-5.
    wanted = F.interpolate(
        row.double(), size=(1, after), mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(shrinking(after + more, after) @ row[0, 0, 0], wanted[0, 0, 0].float())


def test_a_large_kernel_answers_as_the_small_one_does_after_shrinking() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, patches = (
        torch.randn(5, 3, 8, 8, generator=generator),
        torch.randn(4, 3, 13, 13, generator=generator),
    )
    small = F.interpolate(patches, size=(8, 8), mode="bilinear", antialias=True, align_corners=False)
    wanted = (small[:, None] * weight).sum(dim=(2, 3, 4))
    found = (patches[:, None] * coarse_kernel(weight, 13)).sum(dim=(2, 3, 4))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [4, 2, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 3, "no_embed_class": True},
        {"init_values": 0.5, "qk_norm": True, "pre_norm": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_the_features_are_those_of_timm_for_the_shrunken_picture(options: dict, grid: int) -> None:
    """Patches of the tiny trunk are 8 pixels wide; each larger one is shrunk by itself."""
    net, pictures = ElasticViT(tiny_trunk(**options)), images(3)
    with torch.inference_mode():
        found = net.features(pictures, TokenSchedule((0,) * LAYERS, grid=grid))
        small = tiny_trunk(**{**options, "img_size": 8 * grid})
        front = 0 if options.get("no_embed_class") else small.num_prefix_tokens
        positions = coarse_positions(net.trunk.pos_embed, front, grid)
        small.load_state_dict({**net.trunk.state_dict(), "pos_embed": positions})
        by_patch = pictures.unfold(2, 32 // grid, 32 // grid).unfold(3, 32 // grid, 32 // grid)
        shrink = shrinking(32 // grid, 8)
        blocks = shrink @ by_patch @ shrink.T  # (batch, 3, grid, grid, 8, 8)
        shrunken = blocks.permute(0, 1, 2, 4, 3, 5).reshape(3, 3, 8 * grid, 8 * grid)
        wanted = small.forward_head(small.forward_features(shrunken), pre_logits=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_weights_own_grid_changes_nothing() -> None:
    net, pictures = ElasticViT(tiny_trunk()), images(2)
    with torch.inference_mode():
        wanted = net.features(pictures)
        torch.testing.assert_close(net.features(pictures, TokenSchedule((0,) * LAYERS, grid=4)), wanted)


def test_what_is_left_over_is_a_margin_of_equal_width() -> None:
    """32 pixels in 3 patches of 10: one pixel on each side is not looked at."""
    trunk, one = tiny_trunk(), images(1)
    other = one.clone()
    other[:, :, (0, -1)], other[:, :, :, (0, -1)] = 9.0, -9.0
    with torch.inference_mode():
        tokens = embed_coarsely(trunk, one, 3)
        assert tokens.shape == (1, 1 + 9, trunk.embed_dim)
        torch.testing.assert_close(embed_coarsely(trunk, other, 3), tokens, rtol=0, atol=0)
        other[:, :, 1, 1] += 1
        assert (embed_coarsely(trunk, other, 3)[:, 1] - tokens[:, 1]).abs().max() > 1e-3


def test_merging_goes_on_from_the_coarse_patches() -> None:
    net = ElasticViT(tiny_trunk())
    with torch.inference_mode():
        merged = net.features(images(2), TokenSchedule((2, 1, 0, 0), grid=3))
        plain = net.features(images(2), TokenSchedule((0,) * LAYERS, grid=3))
        prompted = net.features(
            images(2), TokenSchedule((2, 1, 0, 0), 2, grid=3), torch.randn(2, LAYERS, 2, 32)
        )
    assert merged.shape == plain.shape == prompted.shape
    assert (merged - plain).abs().max() > 1e-3


def test_more_patches_than_the_weights_have_are_refused() -> None:
    with pytest.raises(ValueError, match=f"g5 has 25 patches: the weights have {PATCHES}"):
        ElasticViT(tiny_trunk()).features(images(1), parse_schedule("g5", LAYERS))


def test_gradients_reach_the_small_kernel() -> None:
    net = ElasticViT(tiny_trunk())
    net.features(images(1), TokenSchedule((0,) * LAYERS, grid=2)).sum().backward()
    assert net.trunk.patch_embed.proj.weight.grad.abs().max() > 0
