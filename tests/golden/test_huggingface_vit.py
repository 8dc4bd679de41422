"""An imported ViT or DeiT of Hugging Face answers what transformers answered; see make_huggingface_vit.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedstill.cloud_server.serving.engine.trunk import Trunk, load_trunk
from fedstill.cloud_server.serving.imports.import_weights import ImportOptions, import_weights
from fedstill.models.vit.preprocess import image_batch

KEPT = Path(__file__).parents[1] / "data" / "huggingface_vit"
MODELS = ("vit", "vit_other", "deit")
NEWER = {
    "encoder.layer.": "layers.", "attention.attention.query": "attention.q_proj", "attention.output.dense":
    "attention.o_proj", "attention.attention.key": "attention.k_proj", "attention.attention.value":
    "attention.v_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
}  # fmt: skip
"""Names in a file -> names in the memory of transformers 5, which ``torch.save(model.state_dict())`` writes."""


def imported(source: Path, folder: Path) -> Trunk:
    import_weights(source, folder / "imported.safetensors", ImportOptions())
    return load_trunk(folder / "imported.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_features_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    trunk, kept = imported(KEPT / name, tmp_path), load_file(KEPT / name / "answers.safetensors")
    with torch.inference_mode():
        logits, features = trunk.net(kept["pixel_values"]), trunk.net.features(kept["pixel_values"])
    torch.testing.assert_close(logits, kept["logits"], rtol=0, atol=1e-5)  # issue: 1e-3
    torch.testing.assert_close(features, kept["features"], rtol=0, atol=1e-5)
    assert kept["logits"].std() > 0.3  # heads of noise would agree on 0


@pytest.mark.parametrize("name", MODELS)
def test_a_picture_is_prepared_as_its_image_processor_does(name: str, tmp_path: Path) -> None:
    trunk, kept = imported(KEPT / name, tmp_path), load_file(KEPT / name / "answers.safetensors")
    prepared = image_batch([kept["picture"].numpy()], 32, trunk.net.preprocess)
    levels = (prepared - kept["prepared"]).abs() * 255 * torch.tensor(trunk.net.preprocess.std).view(3, 1, 1)
    assert levels.max() < 1.05  # of 256: it rounds to whole values after resizing, and we do not
    with torch.inference_mode():
        torch.testing.assert_close(trunk.net(prepared)[0], kept["picture_logits"], rtol=0, atol=0.02)


def test_the_card_has_classes_and_what_they_mean(tmp_path: Path) -> None:
    made = import_weights(KEPT / "vit", tmp_path / "cats.safetensors", ImportOptions())
    assert made.card.class_names == ("tabby, tabby cat", "crane (1)", "crane (2)")
    assert made.card.multi_label
    assert made.card.layer_norm_eps == 1e-12
    assert made.remarks == ("1 names of classes are there twice, and got their number: crane",)
    plain = json.loads((tmp_path / "cats.json").read_text())
    assert plain["fedstill"]["origin"]["library"].startswith("transformers 5.")


@pytest.mark.parametrize("newer", [False, True])
def test_a_pickle_of_the_state_is_the_same(newer: bool, tmp_path: Path) -> None:
    state = load_file(KEPT / "vit" / "model.safetensors")
    if newer:
        for theirs, ours in NEWER.items():
            state = {name.replace(theirs, ours): value for name, value in state.items()}
        assert "vit.layers.1.attention.q_proj.weight" in state
    source = tmp_path / "saved"
    source.mkdir()
    torch.save(state, source / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(KEPT / "vit" / name, source)
    (source / "README.md").write_text("---\ntags: [cats]\nlicense: apache-2.0\n---\nA model.\n")
    trunk = imported(source, tmp_path)
    kept = load_file(KEPT / "vit" / "answers.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(trunk.net(kept["pixel_values"]), kept["logits"], rtol=0, atol=1e-5)
    assert trunk.card is not None
    assert trunk.card.licence == "apache-2.0"
