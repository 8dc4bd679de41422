"""OpenVINO gives torch's answers at every token schedule, for any mix of tasks, and talks to nobody."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers.vit import LAYERS, images, task, tiny_trunk
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedstill.cloud_server.serving.engine import openvino_backend, openvino_library
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.openvino_backend import OpenVinoBackend, pieces, why_not
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.datasets.images.image_tasks import find_images
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule, parse_schedule

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install '.[openvino]'"
)

SCHEDULES = (
    constant_schedule(0, LAYERS),
    constant_schedule(-3, LAYERS),
    constant_schedule(-100, LAYERS),  # runs out of tokens
    constant_schedule(2, LAYERS),
    TokenSchedule((3, 2, 0, 0), 2, "accumulate"),
    TokenSchedule((2, 0, 1, 0), 2, grid=3),
)
TASKS = {"three": task(3, 1), "five": task(5, 2), "bare": task(4, 3, prompts=())}
WEIGHTS = "weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.fp16.safetensors"


def settings(backend: str, schedules: tuple[TokenSchedule, ...] = SCHEDULES) -> EngineSettings:
    return EngineSettings(schedules, (1, 2, 4, 8), "cpu", "fp32", backend)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engines() -> tuple[Engine, Engine]:
    """OpenVINO's, and torch's."""
    made = [Engine(ElasticViT(tiny_trunk()), TASKS, settings(name)) for name in ("openvino", "torch")]
    told: list[str] = []
    made[0].warm_up(told.append)
    assert told[1:] == [
        f"warming up schedule {one.name}, {place} of 6" for place, one in enumerate(SCHEDULES[1:], 2)
    ]
    return made[0], made[1]


@needs_openvino
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_every_schedule_gives_the_logits_of_torch(
    engines: tuple[Engine, Engine], schedule: TokenSchedule
) -> None:
    for rows in (1, 3, 4, 7, 8):
        names = (["five", "three", "three"] * 3)[:rows]
        for one, other in zip(*(e.infer(images(rows), names, schedule) for e in engines), strict=True):
            assert isinstance(one, Prediction)
            assert isinstance(other, Prediction)
            assert one.class_names == other.class_names
            np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)


@needs_openvino
@pytest.mark.parametrize(
    "options",
    [
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 3, "no_embed_class": True},
        {"init_values": 0.5, "qk_norm": True, "pre_norm": True},
    ],
    ids=lambda options: " ".join(options),
)
def test_every_kind_of_trunk_is_converted(options: dict) -> None:
    net = ElasticViT(tiny_trunk(**options), proportional_attention="reg_tokens" not in options)
    backend = OpenVinoBackend(net, "fp32", schedules=2, maximum_batch=1)
    for schedule in (SCHEDULES[1], TokenSchedule((1,) * LAYERS, grid=3)):
        with torch.inference_mode():
            wanted = net.features(images(2), schedule)
        found = backend.features(images(2), schedule, None)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@needs_openvino
def test_bad_rows_and_swaps_are_as_with_torch(engines: tuple[Engine, Engine]) -> None:
    engine, _ = engines
    batch = images(5)
    batch[1, 0, 3, 3], batch[4, 0, 3, 3] = torch.nan, 1e38
    results = engine.infer(batch, ["nothing", "five", "bare", "three", "three"], SCHEDULES[3])
    reasons = [one.reason if isinstance(one, Rejection) else "" for one in results]
    assert reasons == ["unknown_task", "bad_image", "no_prompts", "", "bad_image"]
    before = engine.infer(images(1), ["three"], SCHEDULES[3])[0]
    engine.swap({**TASKS, "three": task(3, 9)})
    after = engine.infer(images(1), ["three"], SCHEDULES[3])[0]
    engine.swap(TASKS)
    assert np.abs(before.logits - after.logits).max() > 0.1


@needs_openvino
@pytest.mark.data
def test_real_weights_give_the_features_of_torch(data_dir: Path) -> None:
    net = load_trunk(data_dir / WEIGHTS).net
    pictures = load_file(data_dir / "golden" / "token_merging_vit_tiny.safetensors")["images"][:4]
    backend = OpenVinoBackend(net, "fp32", schedules=4, maximum_batch=1)
    for schedule in (parse_schedule(name, 12) for name in ("0", "-10", "-20", "g9-3")):
        with torch.inference_mode():
            wanted = net.features(pictures, schedule)
        found = backend.features(pictures, schedule, None)
        assert float(torch.cosine_similarity(found, wanted).min()) > 0.99999
        assert float((found - wanted).abs().max()) < 1e-3


@needs_openvino
@pytest.mark.data
@pytest.mark.slow
def test_bf16_is_as_accurate_as_fp32(data_dir: Path) -> None:
    """bf16 decides otherwise which tokens merge, so single answers differ and only their accuracy is compared."""
    net, merging = load_trunk(data_dir / WEIGHTS).net, constant_schedule(-10, 12)
    reason = why_not(net, "bf16", 1, 4)
    if reason:
        pytest.skip(reason)
    loaded = find_images("cifar10", None).load("test", 800, 0)
    labels = torch.from_numpy(loaded.labels)
    batch = image_batch(loaded.images, net.image_size, net.preprocess)
    right = {}
    for name in ("fp32", "bf16"):
        features = OpenVinoBackend(net, name, 1, 4).features(batch, merging, None)  # type: ignore[arg-type]
        known, asked = features[::2], features[1::2]  # the rows are ordered by class
        means = torch.stack([known[labels[::2] == label].mean(0) for label in range(10)])
        right[name] = float((torch.cdist(asked, means).argmin(1) == labels[1::2]).float().mean())
    assert right["fp32"] > 0.5
    assert right["bf16"] > right["fp32"] - 0.05


@given(st.integers(0, 200), st.integers(0, 4))
def test_a_batch_is_cut_into_sizes_that_have_a_graph(rows: int, more: int) -> None:
    sizes = [4**power for power in range(more + 1)]
    found = pieces(rows, sizes)
    assert sum(found) == rows
    assert set(found) <= set(sizes)
    assert all(found.count(size) < 4 for size in sizes[:-1])


@needs_openvino
def test_graphs_take_a_bounded_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    net = ElasticViT(tiny_trunk())
    memory = psutil.virtual_memory()

    def free(mib: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=mib * 2**20))

    free(4096)
    assert OpenVinoBackend(net, "fp32", 10, 32).graph_sizes == (1, 4)
    assert OpenVinoBackend(net, "fp32", 10, 2).graph_sizes == (1,)
    free(2048)
    assert OpenVinoBackend(net, "fp32", 10, 32).graph_sizes == (1,)
    free(1024)
    assert "name fewer --schedules" in why_not(net, "fp32", 10, 32)
    assert why_not(net, "fp32", 2, 32) == ""


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_library, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"openvino: the package is not installed: .*\[openvino\]"):
        Engine(ElasticViT(tiny_trunk()), TASKS, settings("openvino"))
    assert Engine(ElasticViT(tiny_trunk()), TASKS, settings("auto", SCHEDULES[:1])).variant.startswith(
        "torch"
    )


@needs_openvino
def test_a_library_that_does_not_fit_is_named_and_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libtbb.so.12: cannot open shared object file\nsecond line")

    monkeypatch.setattr(openvino_backend, "core", broken)
    net = ElasticViT(tiny_trunk())
    said = "openvino: the package cannot be used here .libtbb.so.12: cannot open shared object file.$"
    with pytest.raises(ValueError, match=said):
        Engine(net, TASKS, settings("openvino"))
    assert Engine(net, TASKS, settings("auto", SCHEDULES[:1])).variant.startswith("torch")


WATCHED = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(event)
        raise OSError("nothing leaves this process")  # nor its children: forks inherit this
sys.addaudithook(watch)
"""
OURS = """
import torch
from fedstill.cloud_server.serving.engine.openvino_backend import OpenVinoBackend
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import constant_schedule
from timm.models.vision_transformer import VisionTransformer
net = ElasticViT(VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=4).eval())
OpenVinoBackend(net, "fp32", 1, 4).features(torch.zeros(1, 3, 32, 32), constant_schedule(-3, 1), None)
"""


@needs_openvino
@pytest.mark.parametrize(
    ("program", "reports"), [(OURS, False), ("import openvino", True)], ids=["ours", "its own"]
)
def test_no_connection_is_made(tmp_path: Path, program: str, reports: bool) -> None:
    """OpenVINO reports over the network when it is imported and when it converts; here it must not even try."""
    seen, home = tmp_path / "seen", tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "SEEN": str(seen), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", WATCHED + program], env=environment, check=True, timeout=100)
    assert seen.exists() == reports
    assert bool(list(home.iterdir())) == reports  # an identity, for reports to come
