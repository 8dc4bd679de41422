"""Guards the networks and their files: every shape that an experiment may name, and weights that come back as saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from fedstill.models.audiovisual import residual
from fedstill.models.audiovisual.encoders import Encoder
from fedstill.models.audiovisual.network import (
    AudioVisualNet,
    Features,
    Logits,
    NetworkSpec,
    available_logits,
    parameter_count,
)
from fedstill.models.audiovisual.specs import Architecture, EncoderSpec, Fusion, Stem
from fedstill.models.vit.preprocess import to_tensors
from fedstill.models.weights.checkpoint import (
    CheckpointError,
    CheckpointMeta,
    load_checkpoint,
    network_from_json,
    network_to_json,
    save_checkpoint,
)
from fedstill.models.weights.packing import load_packed, pack, unpack

SMALL = NetworkSpec(EncoderSpec("resnet10", 2, "compact"), feature_width=12, classes=5, frame_channels=1)
NAMES = ("a", "b", "c", "d", "e")


def net(spec: NetworkSpec = SMALL, seed: int = 0) -> AudioVisualNet:
    return AudioVisualNet(spec, torch.Generator().manual_seed(seed)).eval()


def clips(channels: int = 1, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 1, 33, 40, generator=generator),
        torch.randn(2, count, channels, 32, 32, generator=generator),
    )


@pytest.mark.parametrize("fusion", get_args(Fusion))
@pytest.mark.parametrize("stem", get_args(Stem))
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_network(architecture: Architecture, stem: Stem, fusion: Fusion) -> None:
    own_width = 2 * 8 * (4 if architecture == "resnet101" else 1)
    for feature_width, channels in ((own_width, 1), (12, 3)):
        spec = NetworkSpec(EncoderSpec(architecture, 2, stem), feature_width, 5, fusion, channels)
        model = net(spec)
        features = model.encoders(*clips(channels))
        assert [part.shape for part in features] == [(2, feature_width)] * 2
        assert [part.shape for part in model.head(features)] == [(2, 5)] * 3
        assert all(part.isfinite().all() for part in model(*clips(channels)))
        adapted = isinstance(model.encoders.audio.adaptor, nn.Linear)
        assert adapted == (feature_width != own_width)
        assert network_from_json(network_to_json(spec)) == spec


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_every_fusion_uses_both_modalities(fusion: Fusion) -> None:
    model = net(NetworkSpec(EncoderSpec("resnet10", 2), 12, 5, fusion))
    audio, visual = torch.randn(2, 12), torch.randn(2, 12)
    joint = model.head(Features(audio, visual)).joint
    assert not torch.allclose(joint, model.head(Features(audio + 1, visual)).joint)
    assert not torch.allclose(joint, model.head(Features(audio, visual + 1)).joint)


@pytest.mark.parametrize(
    ("architecture", "depths", "millions"),
    [("resnet101_basic", [3, 4, 23, 3], 41.4), ("resnet18", [2, 2, 2, 2], 11.17)],
)
def test_parameters_of_the_papers_audio_encoders(
    architecture: Architecture, depths: list[int], millions: float
) -> None:
    encoder = Encoder(EncoderSpec(architecture, 64), in_channels=1, feature_width=512)
    assert isinstance(encoder.adaptor, nn.Identity)
    whole = torchvision_resnet.ResNet(torchvision_resnet.BasicBlock, depths)
    two_channels = 2 * 64 * 7 * 7  # torchvision's first layer has three input channels, ours one
    assert parameter_count(encoder) == parameter_count(whole) - parameter_count(whole.fc) - two_channels
    assert parameter_count(encoder) / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_residual_blocks_are_torchvisions(block: str, stride: int) -> None:
    """Same weights by name, same numbers, forwards and backwards, and in the statistics that training leaves."""
    results = []
    for source in (residual, torchvision_resnet):
        torch.manual_seed(0)
        made = getattr(source, block)
        out = 4 * made.expansion
        shortcut = nn.Sequential(nn.Conv2d(8, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        net = made(8, 4, stride, shortcut)
        maps = torch.randn(2, 8, 9, 9, requires_grad=True)
        net(maps).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
        results.append({**net.state_dict(), "maps": maps.grad, **{f"d {k}": v for k, v in gradients.items()}})
    ours, theirs = results
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_the_true_resnet101_is_2048_wide() -> None:
    with torch.device("meta"):
        encoder = Encoder(EncoderSpec("resnet101", 64), in_channels=3, feature_width=512)
    assert isinstance(encoder.adaptor, nn.Linear)
    assert encoder.adaptor.in_features == 2048


def test_frames_are_averaged_and_their_order_does_not_count() -> None:
    audio, frames = clips(count=3)
    model = net()
    whole = model.encoders(audio, frames).visual
    singles = [model.encoders(audio, frames[:, [number]]).visual for number in range(3)]
    torch.testing.assert_close(whole, sum(singles) / 3)
    torch.testing.assert_close(whole, model.encoders(audio, frames.flip(1)).visual)


def test_the_same_seed_makes_the_same_network() -> None:
    torch.manual_seed(1)
    first, same, other = net(seed=3).state_dict(), net(seed=3).state_dict(), net(seed=4).state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_missing_modalities() -> None:
    logits = Logits(torch.full((3, 2), 1.0), torch.full((3, 2), 2.0), torch.full((3, 2), 3.0))
    sound, sight = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    assert available_logits(logits, sound, sight)[:, 0].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="missing"):
        available_logits(logits, sound, torch.tensor([True, True, False]))


def test_inputs_of_the_network() -> None:
    audio, frames = to_tensors(np.ones((2, 3, 4), np.float32), np.full((2, 1, 3, 5, 5), 255, np.uint8))
    assert (audio.shape, audio.dtype) == ((2, 1, 3, 4), torch.float32)
    assert frames.shape == (2, 1, 3, 5, 5)
    torch.testing.assert_close(frames, torch.full_like(frames, 2.0))
    black = to_tensors(np.ones((1, 3, 4), np.float32), np.zeros((1, 1, 3, 5, 5), np.uint8))[1]
    torch.testing.assert_close(black, torch.full_like(black, -2.0))


def test_packing_keeps_every_type_and_the_norm_statistics() -> None:
    state = {
        name: torch.arange(6).reshape(2, 3).to(dtype)
        for name, dtype in {
            "half": torch.float16, "brain": torch.bfloat16, "single": torch.float32, "double": torch.float64,
            "byte": torch.uint8, "tiny": torch.int8, "long": torch.int64, "flag": torch.bool,
        }.items()
    }  # fmt: skip
    state |= {"scalar": torch.tensor(3), "empty": torch.empty(0), "turned": torch.arange(6.0).reshape(2, 3).T}
    back = unpack(pack(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert all(back[name].dtype == state[name].dtype for name in state)

    trained, fresh = net(), net(seed=8)
    trained.train()(*clips())
    load_packed(fresh, pack(trained.state_dict()))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in trained.state_dict().items())
    assert int(fresh.state_dict()["encoders.audio.stem.1.num_batches_tracked"]) == 1


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^weights: ") as garbage:
        unpack(np.frombuffer(b"not a safetensors file at all", np.uint8))
    wider = NetworkSpec(SMALL.encoder, 13, 5, "concat", 1)
    with pytest.raises(ValueError, match=r"^weights: size mismatch") as wrong:
        load_packed(net(), pack(net(wider).state_dict()))
    assert "\n" not in str(garbage.value) + str(wrong.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint's stem."""
    model = net()
    model.train()(*clips())
    meta = CheckpointMeta(SMALL, NAMES, {"hop": 256}, {"size": 32})
    save_checkpoint(tmp_path / "models" / "student", model, meta)
    return tmp_path / "models" / "student"


def test_a_checkpoint_comes_back_as_saved(saved: Path) -> None:
    again, meta = load_checkpoint(saved)
    assert meta == CheckpointMeta(SMALL, NAMES, {"hop": 256}, {"size": 32})
    expected = net()
    expected.train()(*clips())
    audio, frames = clips()
    assert torch.equal(again.eval()(audio, frames).joint, expected.eval()(audio, frames).joint)
    assert {path.name for path in saved.parent.iterdir()} == {"student.json", "student.safetensors"}


def test_no_pickle_in_the_files(saved: Path) -> None:
    weights = saved.with_suffix(".safetensors").read_bytes()
    header = int.from_bytes(weights[:8], "little")
    described = json.loads(weights[8 : 8 + header])
    spans = sorted(entry["data_offsets"] for name, entry in described.items() if name != "__metadata__")
    assert spans[0][0] == 0
    assert spans[-1][1] == len(weights) - 8 - header
    json.loads(saved.with_suffix(".json").read_text())
    for path in saved.parent.iterdir():
        assert not path.read_bytes().startswith((b"PK", b"\x80"))


def test_names_with_dots_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """Students are saved as SCENARIO.clientN.ARM."""
    meta = CheckpointMeta(SMALL, NAMES, {}, {})
    for seed, name in enumerate(("client0.select", "client0.fedstill")):
        save_checkpoint(tmp_path / name, net(seed=seed), meta)
    for seed, name in enumerate(("client0.select", "client0.fedstill")):
        weights = load_checkpoint(tmp_path / name)[0].state_dict()["head.audio.weight"]
        assert torch.equal(weights, net(seed=seed).state_dict()["head.audio.weight"])


def cut_weights(stem: Path) -> None:
    path = stem.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-100])


def edit(stem: Path, **changes: object) -> None:
    path = stem.with_suffix(".json")
    described = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in described.items() if value is not None}))


DAMAGE: Mapping[str, Callable[[Path], object]] = {
    "missing": lambda stem: stem.with_suffix(".json").unlink(),
    "weights missing": lambda stem: stem.with_suffix(".safetensors").unlink(),
    "weights cut": cut_weights,
    "json cut": lambda stem: stem.with_suffix(".json").write_text('{"format": 1, "net'),
    "json a list": lambda stem: stem.with_suffix(".json").write_text("[1, 2]"),
    "json not text": lambda stem: stem.with_suffix(".json").write_bytes(b"\xff\xfe\x00"),
    "other format": lambda stem: edit(stem, format=99),
    "no network": lambda stem: edit(stem, network=None),
    "no class names": lambda stem: edit(stem, class_names=None),
    "unknown architecture": lambda stem: edit(
        stem, network=json.loads(network_to_json(SMALL)) | {"encoder": {"architecture": "vgg", "width": 2}}
    ),
    "other width": lambda stem: edit(stem, network=json.loads(network_to_json(SMALL)) | {"feature_width": 7}),
    "other classes": lambda stem: edit(stem, class_names=["a", "b"]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_one_line(kind: str, saved: Path) -> None:
    DAMAGE[kind](saved)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    if kind == "other format":
        assert "99" in str(caught.value)
