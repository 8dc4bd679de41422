"""Heads and prompts learn what can be learnt, and nothing else moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.vit import LAYERS, WIDTH, tiny_trunk
from safetensors.torch import save_file

from fedstill.cloud_server.serving.engine.trunk import TrunkError, load_trunk
from fedstill.cloud_server.serving.tasks.prompt_training import (
    PromptSettings,
    extract_features,
    fit_head,
    linear_probe,
    train_prompts,
)
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import constant_schedule


def dots(count: int, seed: int):
    """Noise with a bright corner: top left is class 0, bottom right class 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = [rng.integers(0, 60, (32, 32, 3), dtype=np.uint8) for _ in range(count)]
    for image, label in zip(images, labels, strict=True):
        corner = slice(0, 12) if label == 0 else slice(20, 32)
        image[corner, corner] += 150
    return images, labels.astype(np.int64)


@pytest.fixture(scope="module")
def net() -> ElasticViT:
    return ElasticViT(tiny_trunk()).requires_grad_(False)


def test_features_are_the_networks_own(net: ElasticViT) -> None:
    images, _ = dots(21, 0)
    seen: list[tuple[int, int]] = []
    features = extract_features(net, images, progress=lambda *done: seen.append(done))
    assert features.shape == (21, WIDTH)
    assert seen == [(16, 21), (21, 21)]
    torch.testing.assert_close(features[20:], extract_features(net, images[20:]), rtol=1e-4, atol=1e-4)


def test_a_probe_learns_and_does_not_depend_on_the_scale_of_features() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 8, generator=generator)
    labels = (features @ torch.randn(8, 4, generator=generator)).argmax(1).numpy()
    weight, bias = linear_probe(features, labels, 4, 1e-4)
    assert float(((features @ weight.T + bias).argmax(1).numpy() == labels).mean()) > 0.95
    scaled, shifted = linear_probe(features * 50 + 7, labels, 4, 1e-4)
    torch.testing.assert_close(
        (features * 50 + 7) @ scaled.T + shifted, features @ weight.T + bias, rtol=0.05, atol=0.5
    )
    again, _ = linear_probe(features, labels, 4, 1e-4)
    assert torch.equal(again, weight)


def test_the_penalty_is_chosen_on_the_validation_images(net: ElasticViT) -> None:
    train, val = ((extract_features(net, images), labels) for images, labels in (dots(40, 1), dots(40, 2)))
    weight, bias, accuracy = fit_head(train, val, 2)
    assert accuracy == pytest.approx(float(((val[0] @ weight.T + bias).argmax(1).numpy() == val[1]).mean()))
    assert accuracy > 0.8


def test_prompts_lower_the_loss_and_leave_the_trunk_alone(net: ElasticViT) -> None:
    images, labels = dots(48, 3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    head = (torch.randn(2, WIDTH, generator=generator) * 0.3, torch.zeros(2))
    losses: list[tuple[int, float]] = []
    settings = PromptSettings((1, 2), epochs=6, batch_size=16, learning_rate=0.05)
    sets = train_prompts(net, head, images, labels, settings, generator, lambda *seen: losses.append(seen))
    assert [count for count, _ in losses] == [1] * 6 + [2] * 6
    assert losses[5][1] < losses[0][1]
    assert losses[-1][1] < losses[5][1]
    assert {count: tuple(prompts.shape) for count, prompts in sets.items()} == {
        1: (LAYERS, 1, WIDTH),
        2: (LAYERS, 2, WIDTH),
    }
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with_prompts = extract_features(net, images, constant_schedule(2, LAYERS), sets[2])
    plain = extract_features(net, images)
    right = [float(((f @ head[0].T).argmax(1).numpy() == labels).mean()) for f in (plain, with_prompts)]
    assert right[1] > right[0]


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_copied_prompts_move_only_if_they_may(net: ElasticViT, rate: float) -> None:
    images, labels = dots(16, 4)
    head = (torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1)), torch.zeros(2))
    settings = PromptSettings((1, 2), epochs=1, learning_rate=0.05, copied_rate=rate)
    sets = train_prompts(net, head, images, labels, settings, torch.Generator().manual_seed(0))
    assert torch.equal(sets[2][:, :1], sets[1]) is (rate == 0)


def test_divergence_and_wrong_settings_are_said(net: ElasticViT) -> None:
    images, labels = dots(8, 5)
    head = (torch.full((2, WIDTH), torch.inf), torch.zeros(2))
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train_prompts(net, head, images, labels, PromptSettings((1,), epochs=1), torch.Generator())
    with pytest.raises(ValueError, match="must grow"):
        PromptSettings((4, 2))
    with pytest.raises(ValueError, match="must be positive"):
        PromptSettings(epochs=0)


def test_a_trunk_loads_by_its_file_name_or_says_why_not(tmp_path: Path) -> None:
    import timm

    net = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    good = tmp_path / "vit_tiny_patch16_224_made.safetensors"
    save_file({name: value.half().contiguous() for name, value in net.state_dict().items()}, good)
    trunk = load_trunk(good)
    assert (trunk.architecture, trunk.net.layers, len(trunk.fingerprint)) == ("vit_tiny_patch16_224", 12, 64)
    assert not any(parameter.requires_grad for parameter in trunk.net.parameters())
    for path, architecture, said in (
        (tmp_path / "none.safetensors", None, "cannot be read"),
        (Path(__file__), None, "is not a safetensors file"),
        (good.rename(tmp_path / "mine.safetensors"), None, "does not begin with a timm model name"),
        (tmp_path / "mine.safetensors", "vit_huge", "is not a timm model"),
        (tmp_path / "mine.safetensors", "vit_small_patch16_224", "does not fit vit_small_patch16_224"),
        (tmp_path / "mine.safetensors", "resnet18", "is not a Vision Transformer"),
    ):
        with pytest.raises(TrunkError, match=said):
            load_trunk(path, architecture)
