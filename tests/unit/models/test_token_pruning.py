"""Pruning: masked is removed, gradients reach the predictors, and the fine-tuning engine trains it like merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.vit import images, tiny_trunk
from helpers.warmup import SETTINGS, made_net, made_set

from fedstill.cloud_server.warmup.fine_tuning import fine_tune, prepare_images
from fedstill.cloud_server.warmup.pruning_net import PruningNet
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess_settings import PLAIN
from fedstill.models.vit.token_pruning import PrunedViT, masked_attention, pruning_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made_pruned(keep: float = 0.5) -> PrunedViT:
    return PrunedViT(made_net(), keep, generator())


def test_keeping_everything_is_the_plain_network() -> None:
    pruned = made_pruned(1.0)
    assert torch.allclose(pruned(images(3)), pruned.net(images(3)), atol=1e-5)
    assert torch.allclose(pruned.teacher_pass(images(3)).logits, pruned.net(images(3)), atol=1e-5)


def test_patches_go_at_three_places() -> None:
    pruned = made_pruned(0.5)
    assert pruned.places == (1, 2, 3)
    assert [pruned.left(stage) for stage in (1, 2, 3)] == [8, 4, 2]
    seen: list[int] = []
    for block in pruned.net.trunk.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    pruned(images(2))
    assert seen == [17, 9, 5, 3]
    assert made_pruned(0.01).left(3) == 1


def test_a_masked_token_is_as_good_as_removed() -> None:
    net = ElasticViT(tiny_trunk())
    attention = net.trunk.blocks[0].attn
    tokens = torch.randn(2, 6, 32, generator=generator(1))
    visible = torch.tensor([[1.0, 1, 0, 1, 0, 1]] * 2)
    masked, weights = masked_attention(attention, tokens, visible)
    left = [0, 1, 3, 5]
    removed, _ = masked_attention(attention, tokens[:, left], None)
    assert torch.allclose(masked[:, left], removed, atol=1e-5)
    assert float(weights[:, :, 0, 2].detach().abs().max()) == 0
    plain = attention(tokens)
    assert torch.allclose(masked_attention(attention, tokens, None)[0], plain, atol=1e-5)


def test_what_is_gone_stays_gone_and_decisions_follow_the_generator() -> None:
    pruned = made_pruned(0.5)
    first, second, third = pruned.training_pass(images(4), generator(5)).masks
    assert set(first.unique().tolist()) <= {0.0, 1.0}
    assert bool((second <= first).all())
    assert bool((third <= second).all())
    again = pruned.training_pass(images(4), generator(5))
    assert torch.equal(again.masks[2], third)


def test_gradients_reach_every_predictor_and_the_loss_wants_the_shares() -> None:
    pruned = made_pruned(0.5)
    labels = torch.tensor([0, 1, 2, 0])
    student = pruned.training_pass(images(4), generator())
    teacher = pruned.teacher_pass(images(4))
    pruning_loss(student, teacher, labels, 0.5).backward()
    for predictor in pruned.predictors:
        assert all(float(parameter.grad.abs().sum()) > 0 for parameter in predictor.parameters())
    kept = [float(mask.detach().mean()) for mask in student.masks]
    far = pruning_loss(student, teacher, labels, 0.999)
    near = pruning_loss(student, teacher, labels, kept[0])
    assert float(near.detach()) < float(far.detach())


def test_a_student_that_is_its_teacher_loses_on_labels_alone() -> None:
    pruned = made_pruned(1.0)
    teacher = pruned.teacher_pass(images(4))
    everything = tuple(torch.ones(4, 16) for _ in range(3))
    labels = torch.tensor([0, 1, 2, 0])
    expected = torch.nn.functional.cross_entropy(teacher.logits, labels)
    same = pruning_loss(teacher._replace(masks=everything), teacher, labels, 1.0)
    assert float(same) == pytest.approx(float(expected), abs=1e-4)


def test_the_engine_trains_pruning_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    profiling = prepare_images(made_set(12, seed=1), 32, PLAIN)
    whole, cut, again = (PruningNet(made_net(), 0.7, seed=2) for _ in range(3))
    done = fine_tune(whole, made_set(), profiling, SETTINGS)
    assert done.best > done.accuracies[0]

    class Killed(Exception):
        pass

    def kill(_: int, __: float) -> None:
        raise Killed

    state = tmp_path / "p.safetensors"
    with pytest.raises(Killed):
        fine_tune(cut, made_set(), profiling, SETTINGS, state, kill)
    assert fine_tune(again, made_set(), profiling, SETTINGS, state).accuracies == done.accuracies
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name


def test_what_cannot_be_pruned_is_said() -> None:
    with pytest.raises(ValueError, match="keep: 0"):
        made_pruned(0.0)
    with pytest.raises(ValueError, match="more than three layers and a class token"):
        PrunedViT(ElasticViT(tiny_trunk(depth=3)), 0.5, generator())
