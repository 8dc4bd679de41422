"""The elastic ViT is timm's at schedule 0, keeps the tokens that its schedule says, and mixes tasks in one batch."""

from __future__ import annotations

import pytest
import timm
import torch
from helpers.vit import LAYERS, PATCHES, WIDTH, images, task, tiny_trunk
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import ParallelThingsBlock

from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.prompts import grow_prompts, new_prompts
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule, token_counts
from fedstill.models.vit.task_bank import TaskBank, TaskParameters


@pytest.fixture(scope="module")
def net() -> ElasticViT:
    return ElasticViT(tiny_trunk())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 3, "no_embed_class": True},
        {"init_values": 0.5, "qk_norm": True, "pre_norm": True},
        {"depth": 1, "num_heads": 1},
        {"dynamic_img_size": True},
    ],
)
def test_nothing_merged_is_timm_itself(options: dict) -> None:
    trunk = tiny_trunk(**options)
    with torch.inference_mode():
        torch.testing.assert_close(ElasticViT(trunk)(images(3)), trunk(images(3)), rtol=0, atol=1e-6)


def test_every_size_of_timm_keeps_its_state_dict() -> None:
    trunk = timm.create_model("deit_tiny_patch16_224")
    net = ElasticViT(timm.create_model("deit_tiny_patch16_224"))
    net.trunk.load_state_dict(trunk.state_dict(), strict=True)
    assert (net.layers, net.width, net.patches, net.protected, net.image_size) == (12, 192, 196, 1, 224)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=LAYERS, max_size=LAYERS).map(tuple),
    st.integers(0, 3),
    st.sampled_from(["replace", "accumulate"]),
)
def test_each_layer_sees_the_tokens_that_the_schedule_says(merges, prompts, mode) -> None:
    net = ElasticViT(tiny_trunk())
    seen: list[int] = []
    for block in net.trunk.blocks:
        block.norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    schedule = TokenSchedule(merges, prompts, mode)
    given_prompts = torch.randn(2, LAYERS, prompts, WIDTH) if prompts else None
    with torch.inference_mode():
        features = net.features(images(2), schedule, given_prompts)
    assert features.shape == (2, WIDTH)
    assert torch.isfinite(features).all()
    assert tuple(seen) == token_counts(schedule, PATCHES)[:-1]


def test_rows_do_not_influence_each_other(net: ElasticViT) -> None:
    schedule = TokenSchedule((3, 2, 2, 0), 2)
    batch, prompts = images(5), torch.randn(5, LAYERS, 2, WIDTH)
    order = torch.tensor([3, 1, 4, 0, 2])
    with torch.inference_mode():
        together = net.features(batch, schedule, prompts)
        shuffled = net.features(batch[order], schedule, prompts[order])
        alone = torch.cat([net.features(batch[i : i + 1], schedule, prompts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together[order], shuffled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", [constant_schedule(0, LAYERS), TokenSchedule((3, 2, 0, 0), 2)])
def test_a_batch_of_mixed_tasks_is_each_task_alone(net: ElasticViT, schedule: TokenSchedule) -> None:
    tasks = {"three": task(3, 1), "five": task(5, 2), "nine": task(9, 3)}
    bank = TaskBank(tasks, LAYERS, WIDTH)
    names, batch = ["five", "three", "nine", "five"], images(4)
    with torch.inference_mode():
        rows = bank.rows(names)
        mixed = bank.logits(net.features(batch, schedule, bank.prompts(rows, schedule.prompts)), rows)
        for row, name in enumerate(names):
            only = TaskBank({name: tasks[name]}, LAYERS, WIDTH)
            one = only.rows([name])
            features = net.features(batch[row : row + 1], schedule, only.prompts(one, schedule.prompts))
            classes = len(tasks[name].class_names)
            torch.testing.assert_close(
                mixed[row, :classes], only.logits(features, one)[0], rtol=1e-4, atol=1e-4
            )
            assert torch.isneginf(mixed[row, classes:]).all()


def test_prompts_change_the_answer_of_their_own_rows_only(net: ElasticViT) -> None:
    schedule, prompts = constant_schedule(2, LAYERS), torch.randn(2, LAYERS, 2, WIDTH)
    other = prompts.clone()
    other[1] = -other[1]  # adding a constant would vanish in the layer norm
    with torch.inference_mode():
        before, after = (net.features(images(2), schedule, some) for some in (prompts, other))
    torch.testing.assert_close(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-2


def test_proportional_attention_is_a_choice(net: ElasticViT) -> None:
    off = ElasticViT(net.trunk, proportional_attention=False)
    plain, merged = constant_schedule(0, LAYERS), constant_schedule(-3, LAYERS)
    with torch.inference_mode():
        torch.testing.assert_close(net(images(2), plain), off(images(2), plain), rtol=0, atol=0)
        assert (net(images(2), merged) - off(images(2), merged)).abs().max() > 1e-3


def test_identical_patches_merge_without_a_trace() -> None:
    """Proportional attention makes merging of equal tokens exact; without position embedding all patches are equal."""
    trunk = tiny_trunk()
    with torch.no_grad():
        trunk.pos_embed[:, 1:] = trunk.pos_embed[:, 1:2]
    net, flat = ElasticViT(trunk), torch.ones(1, 3, 32, 32)
    with torch.inference_mode():
        merged, plain = net(flat, constant_schedule(-2, LAYERS)), net(flat)
    torch.testing.assert_close(merged, plain, rtol=1e-4, atol=1e-4)


def test_gradients_reach_prompts_through_merging(net: ElasticViT) -> None:
    prompts = torch.randn(2, LAYERS, 2, WIDTH, requires_grad=True)
    net.features(images(2), TokenSchedule((2, 2, 0, 0), 2), prompts).sum().backward()
    assert prompts.grad is not None
    assert (prompts.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_wrong_calls_name_what_is_wrong(net: ElasticViT) -> None:
    with pytest.raises(ValueError, match="schedule: 2 layers, the network has 4"):
        net(images(1), TokenSchedule((0, 0)))
    with pytest.raises(ValueError, match="the schedule adds 2, none were given"):
        net(images(1), constant_schedule(2, LAYERS))
    with pytest.raises(ValueError, match="prompts: shape"):
        net(images(1), constant_schedule(2, LAYERS), torch.zeros(1, LAYERS, 3, WIDTH))
    with pytest.raises(ValueError, match="pooling 'map' is not supported"):
        ElasticViT(tiny_trunk(global_pool="map"))
    with pytest.raises(ValueError, match="VisionTransformerDistilled is not a plain"):
        ElasticViT(timm.create_model("deit_tiny_distilled_patch16_224"))
    with pytest.raises(ValueError, match="DiffAttention is not supported"):
        ElasticViT(tiny_trunk(attn_layer="diff"))
    with pytest.raises(ValueError, match="ParallelThingsBlock is not supported: use plain blocks"):
        ElasticViT(tiny_trunk(block_fn=ParallelThingsBlock))
    with pytest.raises(ValueError, match=r"images: shape \(1, 3, 40, 40\)"):
        net(images(1, size=40))


def test_task_parameters_must_fit_together() -> None:
    weight, bias = torch.zeros(2, WIDTH), torch.zeros(2)
    with pytest.raises(ValueError, match="at least two, all different"):
        TaskParameters(("a", "a"), weight, bias)
    with pytest.raises(ValueError, match="for 3 classes"):
        TaskParameters(("a", "b", "c"), weight, bias)
    with pytest.raises(ValueError, match="NaN or infinity"):
        TaskParameters(("a", "b"), weight * torch.nan, bias)
    with pytest.raises(ValueError, match="under 3"):
        TaskParameters(("a", "b"), weight, bias, {3: torch.zeros(LAYERS, 2, WIDTH)})
    with pytest.raises(ValueError, match="made for another trunk"):
        TaskBank({"x": task(3, 1)}, LAYERS, WIDTH + 1)
    bank = TaskBank({"x": task(3, 1), "y": task(3, 2, prompts=())}, LAYERS, WIDTH)
    with pytest.raises(ValueError, match="task y has no set of 2"):
        bank.prompts(bank.rows(["x", "y"]), 2)
    with pytest.raises(KeyError):
        bank.rows(["z"])


def test_prompts_grow_from_a_trained_set() -> None:
    generator = torch.Generator().manual_seed(0)
    small, fresh = (new_prompts(LAYERS, count, WIDTH, 192, generator) for count in (2, 4))
    grown = grow_prompts(small, fresh)
    assert torch.equal(grown[:, :2], small)
    assert torch.equal(grown[:, 2:], fresh[:, 2:])
    assert float(fresh.abs().max()) <= (6 / (192 + WIDTH)) ** 0.5
    with pytest.raises(ValueError, match="cannot grow"):
        grow_prompts(fresh, small)
