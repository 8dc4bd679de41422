"""Merging on real weights gives the recorded logits of a ViT-Tiny with K tokens merged per layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule, decreasing_schedule

pytestmark = pytest.mark.data
TOLERANCE = 1e-3
SCHEDULES = {
    f"logits_r{count}": constant_schedule(-count, 12) for count in (0, 2, 5, 10, 15, 16, 20, 25, 100)
}
SCHEDULES["logits_r13_decreasing"] = decreasing_schedule(13, 12)


@pytest.fixture(scope="module")
def recorded(data_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(data_dir / "golden" / "token_merging_vit_tiny.safetensors")


@pytest.fixture(scope="module")
def net(data_dir: Path) -> ElasticViT:
    trunk = timm.create_model("vit_tiny_patch16_224")
    weights = load_file(data_dir / "weights" / "vit_tiny_patch16_224_augreg_in21k_ft_in1k.fp16.safetensors")
    trunk.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return ElasticViT(trunk.eval())


@pytest.mark.parametrize(("name", "schedule"), SCHEDULES.items(), ids=SCHEDULES)
def test_logits_are_the_recorded_ones(net, recorded, name: str, schedule: TokenSchedule) -> None:
    with torch.inference_mode():
        logits = net(recorded["images"], schedule)
    assert (logits - recorded[name]).abs().max() < TOLERANCE


def test_the_recorded_logits_differ_from_each_other_by_far_more(recorded) -> None:
    plain = recorded["logits_plain"]
    assert all(
        (recorded[name] - plain).abs().max() > 50 * TOLERANCE for name in SCHEDULES if name != "logits_r0"
    )
