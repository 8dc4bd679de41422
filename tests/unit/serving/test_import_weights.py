"""``fedstill import``: fine-tuned timm models however they were wrapped and saved, other sizes, and what is refused."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.command import CliRunner
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from fedstill.cli.main import app
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.imports import read_state

ARCHITECTURE = "test_vit"  # 160 pixels, 10 x 10 patches, 64 wide
KEPT = Path(__file__).parents[2] / "data" / "huggingface_vit"


@pytest.fixture(scope="module")
def tuned() -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(ARCHITECTURE, num_classes=3).eval()
    nn.init.normal_(net.head.weight)
    nn.init.normal_(net.head.bias)
    return net


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))


def run(source: Path, *options: str):
    out = source.parent / "out" / "tuned.safetensors"
    return CliRunner().invoke(app, ["import", str(source), "--out", str(out), *options])


def logits(source: Path, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return load_trunk(source.parent / "out" / "tuned.safetensors").net(images)


def with_prefix(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """A trunk as ``backbone``, a head beside it, and a counter."""
    head = {
        name.replace("head.", "model.classifier.1."): state[name] for name in ("head.weight", "head.bias")
    }
    trunk = {f"model.backbone.{name}": value for name, value in state.items() if not name.startswith("head.")}
    return {"epoch": 3, "state_dict": {**trunk, **head, "metric.count": torch.tensor(4)}}


def timm_training(state: dict[str, Tensor]) -> dict[str, Any]:
    """As timm's train.py saves it: with an average of the weights, which is what it evaluates."""
    arguments = argparse.Namespace(model=ARCHITECTURE, mean=[0.1, 0.2, 0.3], std=None, crop_pct=0.9)
    raw = {name: value + 1 for name, value in state.items()}
    return {
        "arch": ARCHITECTURE, "args": arguments, "state_dict": raw, "state_dict_ema": OrderedDict(state),
        "optimizer": {"state": {0: torch.zeros(2)}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrapped",
    [
        dict, with_prefix("module."), with_prefix("model."), with_prefix("backbone."),
        with_prefix("module.model.backbone."), lightning, timm_training,
    ],
)  # fmt: skip
def test_a_fine_tuned_model_keeps_its_logits_however_it_was_wrapped(
    wrapped: Callable[[dict[str, Tensor]], Any], tuned: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    source = tmp_path / "best.pth"
    torch.save(wrapped(tuned.state_dict()), source)
    said = [] if wrapped is timm_training else ["--architecture", ARCHITECTURE]
    done = run(source, "--classes", "cat,dog,hen", *said)
    assert done.exit_code == 0, done.output
    with torch.inference_mode():
        torch.testing.assert_close(logits(source, images), tuned(images), rtol=0, atol=1e-5)
    card = json.loads((tmp_path / "out" / "tuned.json").read_text())
    assert card["label_names"] == ["cat", "dog", "hen"]
    if wrapped is timm_training:
        assert "taken from the checkpoint's state_dict_ema" in done.output
        assert (card["pretrained_cfg"]["mean"], card["pretrained_cfg"]["crop_pct"]) == ([0.1, 0.2, 0.3], 0.9)


def test_a_timm_folder_says_everything_itself(tuned: nn.Module, images: Tensor, tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    save_file(tuned.half().state_dict(), source / "model.safetensors")
    tuned.float()
    config = {
        "architecture": ARCHITECTURE,
        "label_names": ["a", "b", "c"],
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.4], "crop_pct": 1.0, "license": "mit"},
    }
    (source / "config.json").write_text(json.dumps(config))
    done = run(source)
    assert (done.exit_code, "3 classes, licence: mit" in done.output) == (0, True), done.output
    made = load_trunk(tmp_path / "out" / "tuned.safetensors")
    assert made.card is not None
    assert (made.card.class_names, made.net.preprocess.mean) == (("a", "b", "c"), (0.5, 0.5, 0.4))
    kept = load_file(tmp_path / "out" / "tuned.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float16}
    with torch.inference_mode():
        torch.testing.assert_close(logits(source, images), tuned(images), rtol=0, atol=0.01)


@pytest.mark.parametrize("size", [224, 80, 160])
def test_positions_are_resized_as_timm_does(size: int, tuned: nn.Module, tmp_path: Path) -> None:
    source = tmp_path / "tuned.pt"
    torch.save(tuned.state_dict(), source)
    done = run(source, "--architecture", ARCHITECTURE, "--image-size", str(size))
    assert (done.exit_code, f"{size} pixels" in done.output) == (0, True), done.output
    other = timm.create_model(ARCHITECTURE, num_classes=3, img_size=size).eval()
    other.load_state_dict(checkpoint_filter_fn(tuned.state_dict(), other))
    pictures = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(logits(source, pictures), other(pictures), rtol=0, atol=1e-5)


def test_weights_of_another_size_than_the_usual_one_keep_theirs(tmp_path: Path) -> None:
    large = timm.create_model(ARCHITECTURE, num_classes=2, img_size=224).eval()
    torch.save(large.state_dict(), tmp_path / "large.pth")
    done = run(tmp_path / "large.pth", "--architecture", ARCHITECTURE)
    assert "224 pixels, 2 classes" in done.output
    assert "they are numbers" in done.output
    pictures = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(
            logits(tmp_path / "large.pth", pictures), large(pictures), rtol=0, atol=1e-5
        )


def test_mean_pooling_is_seen_by_the_names_of_the_norms(tmp_path: Path) -> None:
    mean = timm.create_model(ARCHITECTURE, num_classes=2, global_pool="avg", fc_norm=True).eval()
    torch.save(mean.state_dict(), tmp_path / "mean.pth")
    assert run(tmp_path / "mean.pth", "--architecture", ARCHITECTURE).exit_code == 0
    pictures = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(logits(tmp_path / "mean.pth", pictures), mean(pictures), rtol=0, atol=1e-5)


class Attack:
    """What unpickling would run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def damaged(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-600])


def two_networks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**with_prefix("student.")(state), **with_prefix("teacher.")(state)}


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (lambda state: timm.create_model(ARCHITECTURE), "", "holds timm.models.vision_transformer.VisionTransformer"),
        (lambda state: {"state_dict": state, "at": datetime.datetime(2026, 1, 1)}, "", "holds datetime.datetime"),
        (lambda state: [1, 2], "", "holds a list, not weights"),
        (lambda state: {"a": 1}, "", "holds no weights by name"),
        (lambda state: {"conv.weight": torch.zeros(2, 2)}, "", "holds no Vision Transformer of timm or transformers"),
        (two_networks, "", "holds 2 networks, at student., teacher.: save the one that is meant"),
        (dict, "", "give --architecture"),
        (dict, "--architecture vit_giant", "is not a timm model"),
        (dict, "--architecture vit_tiny_patch16_224", "does not fit vit_tiny_patch16_224"),
        (dict, "--architecture deit_tiny_distilled_patch16_224", "is not a plain VisionTransformer"),
        (dict, "--architecture resnet18", "is not a Vision Transformer of timm"),
        (dict, "--architecture test_vit --image-size 170", "is not a multiple of 16"),
        (dict, "--architecture test_vit --classes a,b", "2 names, and the head has 3 classes"),
        (dict, "--architecture test_vit --classes a,b,b", ""),
        (dict, "--architecture test_vit --preprocess crop_pct=7", "crop_pct: 7.0 is not between"),
        (
            lambda state: {**state, "head.weight": state["head.weight"][:1], "head.bias": state["head.bias"][:1]},
            "--architecture test_vit",
            "one output",
        ),
        (
            lambda state: {**with_prefix("b.")({k: v for k, v in state.items() if "head" not in k}),
                           "m.0.weight": torch.zeros(8, 64), "m.2.weight": torch.zeros(3, 8)},
            "--architecture test_vit",
            "behind the trunk are m.0.weight, m.2.weight, and a head is one linear layer: give --no-head",
        ),
        (lambda state: {**state, "norm.bias": state["norm.bias"] / 0}, "--architecture test_vit", "NaN or infinity"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_line(
    content: Callable[[dict[str, Tensor]], Any], options: str, said: str, tuned: nn.Module, tmp_path: Path
) -> None:
    source = tmp_path / "some.pth"
    torch.save(content(tuned.state_dict()), source)
    done = run(source, *options.split())
    if not said:
        assert "1 names of classes are there twice" in done.output
        return
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert said in done.output
    assert not (tmp_path / "out").exists()


def test_nothing_in_a_file_is_run(tuned: nn.Module, tmp_path: Path) -> None:
    source = tmp_path / "evil.pth"
    torch.save({"state_dict": tuned.state_dict(), "x": Attack(tmp_path / "ran")}, source)
    done = run(source, "--architecture", ARCHITECTURE)
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert "holds posix.mkdir, which is not weights, and is not loaded" in done.output
    assert not (tmp_path / "ran").exists()


def test_files_that_are_damaged_too_large_or_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(tmp_path / "half.pth")
    (tmp_path / "noise.bin").write_bytes(os.urandom(500))
    (tmp_path / "noise.safetensors").write_bytes(os.urandom(500))
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**20))
    monkeypatch.setattr(read_state, "LARGEST_BYTES", 2**19)
    torch.save({"a": torch.zeros(1).expand(2**20)}, tmp_path / "wide.pth")
    for name, said in (
        ("half.pth", "is not a file of weights, or damaged"),
        ("noise.bin", "is not a file of weights, or damaged"),
        ("noise.safetensors", "is not a safetensors file"),
        ("model.onnx", "is none of .safetensors, .bin"),
        ("empty", "has no model.safetensors or pytorch_model.bin"),
        ("parts", "is in several parts"),
        ("bomb.pt", "unpacks to 0.0 GiB: too large"),
        ("wide.pth", "are too many"),
        ("none.pth", "cannot be read"),
    ):
        done = run(tmp_path / name)
        assert (done.exit_code, done.output.count("\n")) == (2, 1), (name, done.output)
        assert said in done.output, name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "beit"}, "model_type 'beit' is not one of vit, deit"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not one of"),
        ({"hidden_act": ["gelu"]}, "hidden_act \"['gelu']\" is not one of"),
        ({"architectures": 5, "num_channels": 1}, "pictures here have 3"),
        ({"intermediate_size": 10**400}, "too large"),
        ({"architectures": ["DeiTForImageClassificationWithTeacher"]}, "two classifiers is not supported"),
        ({"num_channels": 1}, "pictures here have 3"),
        ({"image_size": [32, 64]}, "is not a square"),
        ({"hidden_size": 0}, "hidden_size '0' is not a whole number above 0"),
        ({"num_hidden_layers": 10**9}, "depth = '1000000000' is not supported"),
        ({"num_hidden_layers": 3}, "depth 3, and the weights have 2"),
        ({"num_attention_heads": 3}, "timm cannot build it"),
    ],
)
def test_a_configuration_that_is_not_supported_is_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source = tmp_path / "saved"
    source.mkdir()
    state = load_file(KEPT / "vit" / "model.safetensors")
    torch.save(state, source / "pytorch_model.bin")
    config = json.loads((KEPT / "vit" / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    done = run(source)
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert said in done.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resample": [3]}, "resample '[3]' is not 2 (bilinear) or 3 (bicubic)"),
        ({"do_center_crop": True}, "crop_size 'None' is not a square"),
        ({"image_mean": 10**400}, "too large"),
    ],
)
def test_pictures_that_are_not_supported_are_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source = tmp_path / "saved"
    shutil.copytree(KEPT / "vit", source)
    (source / "preprocessor_config.json").write_text(json.dumps(changes))
    done = run(source)
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert said in done.output


def test_a_card_belongs_to_its_file(tuned: nn.Module, tmp_path: Path) -> None:
    source = tmp_path / "tuned.pth"
    torch.save(tuned.state_dict(), source)
    assert run(source, "--architecture", ARCHITECTURE).exit_code == 0
    weights, card = tmp_path / "out" / "tuned.safetensors", tmp_path / "out" / "tuned.json"
    good = json.loads(card.read_text())
    for wrong, said in (
        ({"fedstill": {**good["fedstill"], "sha256": "0" * 64}}, "describes another file"),
        ({"fedstill": {**good["fedstill"], "format": 2}}, "is of format 2, not 1"),
        (
            {"model_args": {"checkpoint_path": "/tmp/x.pth"}},
            "checkpoint_path = '/tmp/x.pth' is not supported",
        ),
        ({"label_names": "abc"}, "class_names: needs a list"),
    ):
        card.write_text(json.dumps(good | wrong))
        with pytest.raises(ValueError, match=said):
            load_trunk(weights)
    card.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_trunk(weights)
    card.unlink()
    with pytest.raises(ValueError, match="does not begin with a timm model name"):
        load_trunk(weights)


@pytest.mark.parametrize("content", ['{"architecture": "test_vit"}', "[1]", "{", "\xff"])
def test_a_description_of_somebody_else_s_is_not_replaced(
    content: str, tuned: nn.Module, tmp_path: Path
) -> None:
    """Beside ``tuned.pth`` it is the configuration that is read."""
    source, out = tmp_path / "tuned.pth", tmp_path / "out" / "tuned.safetensors"
    torch.save(tuned.state_dict(), source)
    out.parent.mkdir()
    out.with_suffix(".json").write_text(content, encoding="latin-1")
    done = run(source, "--architecture", ARCHITECTURE)
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert "is not a card of fedstill import, and would be replaced: give another --out" in done.output
    assert out.with_suffix(".json").read_text(encoding="latin-1") == content
    assert not out.exists()
    out.with_suffix(".json").unlink()
    assert [run(source, "--architecture", ARCHITECTURE).exit_code for _ in range(2)] == [0, 0]  # its own card
