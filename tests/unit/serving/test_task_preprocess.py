"""Weights that expect another mean and std are served as well as equivalent ones: from the file to the answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.command import CliRunner
from helpers.vit import task
from PIL import Image
from safetensors.torch import save_file

from fedstill.cli import main as cli
from fedstill.cli.shared.options import preprocess_changes
from fedstill.client.serving_client import ImagePreprocess, ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.serving.app.assembly import assembled
from fedstill.cloud_server.serving.app.load_models import load_devices
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.engine.trunk import TrunkError, load_trunk
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.cloud_server.warmup.warmed_models import WarmedModelError, WarmedModels
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import ConfigError
from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = "mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
CLASSES = ("class0", "class1", "class2")


def fold(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights for 0.5 / 0.5 that give the same features as ``state`` for MEAN / STD.

    With x = (v - m) / s and y = (v - 0.5) / 0.5, x = y 0.5 / s + (0.5 - m) / s: a factor and a shift per channel,
    which the patch embedding can take in, because it has no padding.
    """
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    shift = (weight * (0.5 - mean) / std).sum(dim=(1, 2, 3))
    return {
        **state,
        "patch_embed.proj.weight": weight * 0.5 / std,
        "patch_embed.proj.bias": bias + shift,
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of one network for MEAN / STD, and of its twin for 0.5 / 0.5; timm's tiny ViT for tests."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    net = timm.create_model("test_vit")
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # else all pictures look alike to untrained weights
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    files = (folder / "test_vit_theirs.safetensors", folder / "test_vit_twin.safetensors")
    for file, made in zip(files, (state, fold(state)), strict=True):
        save_file({name: value.contiguous() for name, value in made.items()}, file)
    return files


def coloured(seed: int, side: int = 12) -> bytes:
    """A noisy square in the colour of class ``seed % 3``."""
    noise = np.random.default_rng(seed).integers(0, 120, (side, side, 3))
    noise[:, :, seed % 3] += 120
    content = BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def draw_pictures(folder: Path) -> Path:
    for seed in range(36):
        place = folder / ("train" if seed < 30 else "test") / CLASSES[seed % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(coloured(seed))
    return folder


def add(folder: Path, file: Path, registry: Path, *options: str) -> None:
    command = ["tasks", "add", "cats", "--images", str(folder), "--registry", str(registry)]
    done = CliRunner().invoke(cli.app, [*command, "--weights", str(file), *options])
    assert done.exit_code == 0, done.output


def plan(state: Path, file: Path, pictures: Path) -> ServePlan:
    return ServePlan(
        state=state, warmed=None, listen=("127.0.0.1", 0), web=None, rest=None, policy="fedstill", authority=None,
        operators=frozenset(), weights=str(file), architecture=None, device="cpu", precision="fp32", backend="torch",
        profile=None, schedules="0", batches="1,4", images=(f"cats={pictures}",), val_images=6, seed=0, waiting=64,
        lame_duck_seconds=0.0,
        drain_seconds=1.0,
    )  # fmt: skip


@contextmanager
def served(settings: ServePlan) -> Iterator[ServingClient]:
    settings.folder.mkdir(parents=True, exist_ok=True)
    loop, ports, leave = asyncio.new_event_loop(), Future[Any](), asyncio.Event()

    async def serve() -> None:
        with assembled(settings, None, None, partial(load_devices, settings)) as made:
            opened = await made.server.start()
            await made.server.prepare(made.make)
            ports.set_result(opened)
            await leave.wait()
            await made.server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        with ServingClient(ServingAddress(f"127.0.0.1:{ports.result(120).grpc}")) as client:
            yield client
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
        loop.close()


def test_weights_of_another_normalisation_answer_as_their_twin(
    weights: tuple[Path, Path], tmp_path: Path
) -> None:
    pictures = draw_pictures(tmp_path / "pictures")
    theirs, twin, wrong = (tmp_path / name for name in ("theirs", "twin", "wrong"))
    add(pictures, weights[0], theirs, "--preprocess", IMAGENET)
    add(pictures, weights[1], twin)
    add(pictures, weights[0], wrong)
    queries = [coloured(seed, side) for seed in range(100, 109) for side in (12, 40)]
    found, profiles = {}, {}
    for state, file in ((theirs, weights[0]), (twin, weights[1])):
        settings = plan(state, file, pictures)
        with served(settings) as client:
            found[state] = [client.make_query("cats", image, latency_ms=60_000) for image in queries]
            (told,) = client.describe().tasks
        (kept,) = settings.folder.glob("profile-*.json")
        profiles[state] = [one["accuracy"] for one in json.loads(kept.read_text())["schedules"]]
        assert told.preprocess.crop_pct == 0.95  # timm's, of this architecture
        assert told.preprocess.mean == (MEAN if state == theirs else PLAIN.mean)
        assert told.preprocess.std == (STD if state == theirs else PLAIN.std)
    assert [one.label for one in found[theirs]] == [one.label for one in found[twin]]
    assert [one.label for one in found[twin]] == [CLASSES[seed % 3] for seed in range(100, 109) for _ in "ab"]
    for one, other in zip(found[theirs], found[twin], strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-2, atol=1e-2)
    assert profiles[theirs] == profiles[twin]
    parameters = {}
    for state in (theirs, twin, wrong):
        registry = TaskRegistry(state)
        parameters[state] = registry.load(registry.get("cats"))
        registry.close()
    difference = {
        state: float((parameters[state].head_weight - parameters[twin].head_weight).abs().max())
        for state in (theirs, wrong)
    }
    assert (
        difference[theirs] < difference[wrong] / 100
    )  # the same features, where 0.5 / 0.5 would give others


def test_pictures_are_as_timm_says_of_the_file_or_as_the_user_says(tmp_path: Path) -> None:
    state = timm.create_model("deit_tiny_patch16_224", num_classes=2).state_dict()
    state = {name: value.half().contiguous() for name, value in state.items()}

    def loaded(name: str, **options: Any) -> Preprocess:
        file = tmp_path / f"{name}.safetensors"
        save_file(state, file)
        return load_trunk(file, **options).net.preprocess

    assert loaded("deit_tiny_patch16_224_mine") == Preprocess(MEAN, STD, crop_pct=0.9)
    assert loaded("vit_tiny_patch16_224_mine") == Preprocess(crop_pct=0.9)
    assert loaded("mine", architecture="deit_tiny_patch16_224.fb_in1k").mean == MEAN
    changed = preprocess_changes(
        "mean=0.4,std=0.2/0.3/0.4,interpolation=bilinear,crop_pct=1,crop_mode=squash"
    )
    assert loaded("vit_tiny_patch16_224", preprocess=changed) == Preprocess(
        (0.4, 0.4, 0.4), (0.2, 0.3, 0.4), "bilinear", 1.0, "squash"
    )
    for options, said in (
        (
            {"preprocess": {"interpolation": "lanczos"}},
            "interpolation: 'lanczos' is not one of bicubic, bilinear",
        ),
        ({"preprocess": {"mean": (124.0, 116.0, 104.0)}}, "mean: .* is not between 0 and 1"),
        ({"preprocess": {"mean": (0.5, 0.5)}}, "mean: needs 3 values"),
        ({"architecture": "vit_tiny_patch16_224.mine"}, "timm has no such weights"),
    ):
        with pytest.raises(TrunkError, match=said):
            loaded("vit_tiny_patch16_224", **options)


def test_a_tag_in_the_name_of_a_file_counts(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    for rest, tag in (
        ("", ""),
        ("_augreg_in21k", ".augreg_in21k"),
        ("_augreg_in21k_ft_in1k.fp16", ".augreg_in21k_ft_in1k"),
        (".augreg_in21k-2", ".augreg_in21k"),
        ("_augreg_in21kk", ""),
    ):
        file = tmp_path / f"vit_tiny_patch16_224{rest}.safetensors"
        save_file({key: value.half().contiguous() for key, value in state.items()}, file)
        assert load_trunk(file).architecture == f"vit_tiny_patch16_224{tag}"


@pytest.mark.parametrize("text", ["mean", "mean=", "avg=0.5", "mean=a", "crop_pct=1,crop_pct=1", "mean=0.1/"])
def test_an_option_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="--preprocess"):
        preprocess_changes(text)


def test_a_registry_keeps_how_pictures_are_prepared_and_tells_versions_apart(tmp_path: Path) -> None:
    registry = TaskRegistry(tmp_path)
    made = task(3, 0)
    plain = registry.register("cats", made, "a" * 64)
    other = registry.register(
        "cats", type(made)(**{**vars(made), "preprocess": Preprocess(MEAN, STD)}), "a" * 64
    )
    assert (plain.preprocess, other.preprocess) == (PLAIN, Preprocess(MEAN, STD))
    assert registry.load(plain).preprocess == PLAIN
    assert registry.load(other).preprocess == Preprocess(MEAN, STD)
    assert plain.fingerprint == plain.parameters == other.parameters
    assert other.fingerprint != plain.fingerprint  # a profile of the one is none of the other
    registry.close()


def test_warmed_models_are_of_one_preparation_and_old_ones_of_the_plain_one(tmp_path: Path) -> None:
    old = WarmedModels(tmp_path / "old", {"task": "cats"}, CLASSES)
    old.record_step(0, 1.0)
    assert old.catalogue.preprocess == PLAIN
    WarmedModels(tmp_path / "old", {"task": "cats", "preprocess": to_plain(PLAIN)}, CLASSES)
    theirs = {"task": "cats", "preprocess": to_plain(Preprocess(MEAN, STD))}
    with pytest.raises(WarmedModelError, match="another preprocess"):
        WarmedModels(tmp_path / "old", theirs, CLASSES)
    new = WarmedModels(tmp_path / "new", theirs, CLASSES)
    new.record_step(0, 1.0)
    assert WarmedModels(tmp_path / "new", theirs, CLASSES).catalogue.preprocess == Preprocess(MEAN, STD)


def test_a_client_is_told_and_may_say_how_pictures_are_prepared(
    weights: tuple[Path, Path], tmp_path: Path
) -> None:
    pictures, state = draw_pictures(tmp_path / "pictures"), tmp_path / "tasks"
    add(pictures, weights[1], state)
    theirs = ImagePreprocess(MEAN, STD, "bilinear", 0.875, "squash")
    head = {"head_weight": np.ones((2, 64), np.float32), "head_bias": np.zeros(2, np.float32)}
    with served(plan(state, weights[1], pictures)) as client:
        described = client.describe()
        assert described.preprocess == described.tasks[0].preprocess  # of the weights, as at tasks add
        common: dict[str, Any] = {**head, "trunk": described.trunk, "accuracy": 0.5}
        assert client.register_task("dogs", ("a", "b"), **common).preprocess == described.preprocess
        assert client.register_task("dogs", ("a", "b"), **common, preprocess=theirs).preprocess == theirs
        assert {one.name: one.preprocess for one in client.describe().tasks}["dogs"] == theirs
        strange = ImagePreprocess(MEAN, STD, "lanczos", 0.9, "center")
        with pytest.raises(ServingError, match="preprocess: interpolation: 'lanczos' is not one of"):
            client.register_task("dogs", ("a", "b"), **common, preprocess=strange)
