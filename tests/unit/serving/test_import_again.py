"""``fedstill import`` of what it wrote itself, and of files beside the weights that lie about them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import CliRunner
from safetensors.torch import load_file, save_file

from fedstill.cli.main import app
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.tasks.untrained import own_task

KEPT = Path(__file__).parents[2] / "data" / "huggingface_vit"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of transformers, whose classes are true or not by themselves."""
    folder = tmp_path / "saved"
    shutil.copytree(KEPT / "vit", folder)
    change(folder / "config.json", problem_type="multi_label_classification", layer_norm_eps=1e-3)
    return folder


@pytest.fixture
def imported(source: Path, tmp_path: Path) -> Path:
    out = tmp_path / "first" / "mine.safetensors"
    assert run(source, out).exit_code == 0
    return out


@pytest.fixture
def seconds() -> Iterator[None]:
    """A file that never ends must not end the test run."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def run(source: Path, out: Path, *options: str):
    return CliRunner().invoke(app, ["import", str(source), "--out", str(out), *options])


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(source: Path, out: Path, said: str, *options: str) -> None:
    done = run(source, out, *options)
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert said in done.output


def test_imported_again_nothing_is_lost(imported: Path, tmp_path: Path) -> None:
    again = tmp_path / "second" / "mine.safetensors"
    assert run(imported, again).exit_code == 0
    assert json.loads(again.with_suffix(".json").read_text()) == json.loads(
        imported.with_suffix(".json").read_text()
    )
    assert again.read_bytes() == imported.read_bytes()


def test_imported_again_for_another_use(imported: Path, tmp_path: Path) -> None:
    again = tmp_path / "second" / "mine.safetensors"
    assert run(imported, again, "--no-head").exit_code == 0
    card = load_trunk(again).card
    assert card is not None
    assert (card.class_names, card.multi_label, card.layer_norm_eps) == ((), False, 1e-3)
    refused(imported, tmp_path / "x.safetensors", "drop it", "--architecture", "test_vit")


def test_the_card_of_another_file_is_not_read(imported: Path, tmp_path: Path) -> None:
    """As after weights were trained on and saved under the same name."""
    weights = load_file(imported)
    weights["head.bias"] += 1
    save_file(weights, imported)
    refused(imported, tmp_path / "x.safetensors", "nothing says which timm model it is")
    shutil.copy(KEPT / "vit" / "config.json", imported.parent / "config.json")
    refused(imported, tmp_path / "x.safetensors", "does not fit", "--architecture", "vit_tiny_patch16_224")


def test_a_log_beside_a_checkpoint_is_not_its_configuration(source: Path, tmp_path: Path) -> None:
    torch.save(load_file(source / "model.safetensors"), source / "best.pth")
    (source / "best.json").write_text('{"accuracy": 0.9}')
    out = tmp_path / "out.safetensors"
    assert run(source / "best.pth", out).exit_code == 0
    assert json.loads(out.with_suffix(".json").read_text())["fedstill"]["multi_label"]


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "\x1b[31mred", "x" * 300, ""])
def test_a_name_that_is_no_text_costs_no_weights(name: str, source: Path, imported: Path) -> None:
    """One file is imported over another of before."""
    before = imported.read_bytes()
    labels = json.loads((source / "config.json").read_text())["id2label"]
    change(source / "config.json", id2label={**labels, "0": name})
    refused(source, imported, "label_names")
    assert imported.read_bytes() == before
    load_trunk(imported)


def test_a_licence_that_is_no_text_costs_no_weights(source: Path, imported: Path) -> None:
    before = imported.read_bytes()
    change(source / "config.json", transformers_version="\ud800")
    refused(source, imported, "is no text")
    assert imported.read_bytes() == before


@pytest.mark.parametrize(
    "size", [{"num_hidden_layers": 250}, {"hidden_size": 8192, "intermediate_size": 8192}]
)
def test_a_small_file_does_not_fill_the_memory(size: dict[str, int], source: Path, tmp_path: Path) -> None:
    change(source / "config.json", **size)
    refused(source, tmp_path / "out.safetensors", "it is of another model")


def test_a_description_of_endless_pictures(source: Path, tmp_path: Path) -> None:
    change(source / "config.json", image_size=4096, patch_size=1)
    (source / "preprocessor_config.json").unlink(missing_ok=True)
    refused(source, tmp_path / "out.safetensors", "is more than 65536 patches")


def test_a_card_that_names_other_classes_than_the_head_has(imported: Path) -> None:
    card = imported.with_suffix(".json")
    change(card, label_names=[*json.loads(card.read_text())["label_names"], "one more"])
    with pytest.raises(ValueError, match="its description names"):
        own_task(load_trunk(imported))


def test_a_patch_embedding_of_no_size(source: Path, tmp_path: Path) -> None:
    state = load_file(source / "model.safetensors")
    (name,) = [one for one in state if one.endswith("patch_embeddings.projection.bias")]
    save_file({**state, name: torch.tensor(1.0)}, source / "model.safetensors")
    refused(source, tmp_path / "out.safetensors", "", "--no-head")


@pytest.mark.usefixtures("seconds")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pipe_is_not_waited_for(name: str, source: Path, tmp_path: Path) -> None:
    (source / name).unlink()
    os.mkfifo(source / name)
    refused(source, tmp_path / "out.safetensors", "regular file")


def test_links_that_go_round(source: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(source, tmp_path / "loop" / "out.safetensors", "loop")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xef\xbb\xbfa\nb\n\n", ""), (b"", "names no class"), (b"\xff\xfe", "cannot be read")],
)
def test_a_file_of_class_names(content: bytes, said: str, source: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    count = len(json.loads((source / "config.json").read_text())["id2label"])
    names = [*"abcdefghijklmnop"][:count]
    labels.write_bytes(content.replace(b"a\nb\n", "\n".join(names).encode()))
    out = tmp_path / "out.safetensors"
    if said:
        refused(source, out, said, "--classes", str(labels))
        return
    assert run(source, out, "--classes", str(labels)).exit_code == 0
    assert json.loads(out.with_suffix(".json").read_text())["label_names"] == names


@pytest.mark.parametrize("text", [",", " , ", "x" * 5000])
def test_class_names_as_typed(text: str, source: Path, tmp_path: Path) -> None:
    refused(source, tmp_path / "out.safetensors", "--classes", "--classes", text)
