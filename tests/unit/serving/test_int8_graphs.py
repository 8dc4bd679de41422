"""Schedules in int8: OpenVINO's graphs give what rounding in torch gives, and only engines that can run them do."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.vit import LAYERS, images, task, tiny_trunk
from torch import nn
from torch.nn import functional as F

from fedstill.cloud_server.serving.engine import int8_graphs, openvino_backend
from fedstill.cloud_server.serving.engine.chosen_schedules import chosen_schedules, int8_fits
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.int8_graphs import (
    ACTIVATION_LEVELS,
    activation_ends,
    quantise,
    smoothing_factors,
    weight_levels,
    weight_reach,
)
from fedstill.cloud_server.serving.engine.openvino_backend import OpenVinoBackend
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.common.errors import DataError
from fedstill.common.provenance import cpu_flags
from fedstill.datasets.images.image_tasks import find_images
from fedstill.models.vit.activation_ranges import (
    Ranges,
    linear_layers,
    measure_ranges,
    read_ranges,
    write_ranges,
)
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.schedules import (
    TokenSchedule,
    constant_schedule,
    default_int8_schedules,
    effective_merges,
    parse_schedule,
)

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install '.[openvino]'"
)

PLAIN, MERGING = constant_schedule(0, LAYERS), constant_schedule(-3, LAYERS)
IN_INT8 = replace(PLAIN, int8=True)
TASKS = {"three": task(3, 1), "bare": task(4, 3, prompts=())}
DECREASING = "m30x1-27x1-24x1-21x1-19x1-16x1-13x1-10x1-8x1-5x1-2x1-0x1"
WEIGHTS = "weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.fp16.safetensors"


class Rounded(nn.Module):
    """The reference: a linear layer that rounds what goes into the product."""

    def __init__(self, layer: nn.Linear, ends: torch.Tensor) -> None:
        super().__init__()
        low, high = ends.numpy()
        weights = layer.weight.detach().numpy()
        factors = smoothing_factors(low, high, weights)
        self.factors = torch.from_numpy(factors)
        self.low, self.high = activation_ends(low, high, factors)
        reach = torch.from_numpy(weight_reach(weights * factors))
        self.weight = rounded(layer.weight.detach() * self.factors, -reach, reach, weight_levels())
        self.bias = layer.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        return F.linear(rounded(values / self.factors, low, high, ACTIVATION_LEVELS), self.weight, self.bias)


def rounded(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, levels: int) -> torch.Tensor:
    step = (high - low) / (levels - 1)
    inside = torch.minimum(torch.maximum(values, low), high)
    return torch.round((inside - low) / step) * step + low


def reference(net: ElasticViT, ranges: Ranges) -> ElasticViT:
    for name, layer in linear_layers(net).items():
        parent, _, own = name.rpartition(".")
        setattr(net.get_submodule(parent), own, Rounded(layer, ranges[name]))
    return net


@needs_openvino
@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_vnni"}], ids=["7 bits", "8 bits"])
@pytest.mark.parametrize(
    "schedule", [PLAIN, MERGING, TokenSchedule((2, 0, 1, 0), grid=3)], ids=lambda s: s.name
)
def test_a_graph_in_int8_gives_what_rounding_in_torch_gives(
    schedule: TokenSchedule, flags: set[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if not any("vnni" in flag for flag in cpu_flags()) and "avx512_vnni" in flags:
        pytest.skip("this processor cannot add products of 8 bits in 32")
    monkeypatch.setattr(int8_graphs, "cpu_flags", lambda: flags)
    weight_levels.cache_clear()
    request.addfinalizer(weight_levels.cache_clear)
    assert weight_levels() == (127 if flags == {"avx2"} else 255)
    net, batch = ElasticViT(tiny_trunk()).eval(), images(4)
    ranges = measure_ranges(net, [batch])
    backend = OpenVinoBackend(net, "fp32", 2, 4, ranges=ranges)
    with torch.inference_mode():
        exact = net.features(batch, schedule)
        wanted = reference(ElasticViT(tiny_trunk()).eval(), ranges).features(batch, schedule)
        found = backend.features(batch, replace(schedule, int8=True), None).clone()
        plain = backend.features(batch, schedule, None)
    torch.testing.assert_close(plain, exact, rtol=1e-4, atol=1e-4)
    error = float((exact - wanted).abs().mean())
    assert error > 1e-3  # rounding is seen at all
    # one value between two steps may be rounded to the other one, and all that follows differs a little
    assert float((found - wanted).abs().mean()) < 0.1 * error


@needs_openvino
@pytest.mark.parametrize(
    "options",
    [
        {"global_pool": "avg"},
        {"reg_tokens": 3, "no_embed_class": True},
        {"init_values": 0.5, "qk_norm": True},
    ],
    ids=lambda options: " ".join(options),
)
def test_all_linear_layers_of_every_kind_of_trunk_are_changed(options: dict) -> None:
    net = ElasticViT(tiny_trunk(**options), proportional_attention="reg_tokens" not in options).eval()
    ranges = measure_ranges(net, [images(2)])
    assert len(ranges) == 4 * LAYERS
    model = OpenVinoBackend(net, "fp32", 1, 1)._converted(MERGING)
    assert quantise(model, net, ranges) == 4 * LAYERS
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    assert kinds.count("FakeQuantize") == 8 * LAYERS


@needs_openvino
@pytest.mark.data
@pytest.mark.slow
def test_int8_is_about_as_accurate(data_dir: Path) -> None:
    net = load_trunk(data_dir / WEIGHTS).net
    task = find_images("cifar10", None)
    train, test = task.load("train", 400, 0), task.load("test", 300, 0)

    def prepared(loaded: tuple) -> torch.Tensor:
        return image_batch(loaded, net.image_size, net.preprocess)

    ranges = measure_ranges(net, [prepared(train.images[:96])])
    backend = OpenVinoBackend(net, "fp32", 2, 16, ranges=ranges)
    shares = {}
    for name in ("0", "0q"):
        schedule = parse_schedule(name, 12)
        seen, asked = (
            torch.cat(
                [backend.features(prepared(loaded.images[at : at + 16]), schedule, None).clone()
                 for at in range(0, len(loaded), 16)]
            )
            for loaded in (train, test)
        )  # fmt: skip
        nearest = F.normalize(asked) @ F.normalize(seen).T
        shares[name] = float((train.labels[nearest.argmax(dim=1).numpy()] == test.labels).mean())
    assert shares["0q"] > shares["0"] - 0.03
    assert shares["0"] > 0.5


@needs_openvino
def test_layers_with_the_same_weights_share_their_ranges() -> None:
    def net() -> ElasticViT:
        made = ElasticViT(tiny_trunk()).eval()
        first, second = (made.get_submodule(f"trunk.blocks.{layer}.mlp.fc1") for layer in (0, 2))
        second.weight.data.copy_(first.weight.data)
        return made

    batch, names = images(4), [f"trunk.blocks.{layer}.mlp.fc1" for layer in (0, 2)]
    ranges = dict(measure_ranges(net(), [batch]))
    ranges[names[0]] = 3 * ranges[names[0]]
    low, high = (torch.stack([ranges[name][end] for name in names]) for end in (0, 1))
    both = torch.stack((low.amin(dim=0), high.amax(dim=0)))
    found = OpenVinoBackend(net(), "fp32", 1, 4, ranges=ranges).features(batch, IN_INT8, None)
    with torch.inference_mode():
        wanted = reference(net(), ranges | dict.fromkeys(names, both)).features(batch, PLAIN)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@needs_openvino
def test_layers_of_other_shapes_with_the_same_bytes_are_told_apart() -> None:
    net, batch = ElasticViT(tiny_trunk()).eval(), images(2)
    for name in ("fc1", "fc2"):  # transposed sizes, both without any weight
        net.get_submodule(f"trunk.blocks.1.mlp.{name}").weight.data.zero_()
    backend = OpenVinoBackend(net, "fp32", 1, 4, ranges=measure_ranges(net, [batch]))
    assert backend.features(batch, IN_INT8, None).isfinite().all()


def test_int8_costs_the_other_schedules_no_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = ElasticViT(tiny_trunk()).eval()
    free = openvino_backend.graph_bytes(net, 1) / openvino_backend.MEMORY_SHARE
    for times, room in ((1.5, False), (3.0, True)):
        memory = SimpleNamespace(available=times * free)
        monkeypatch.setattr(openvino_backend.psutil, "virtual_memory", lambda memory=memory: memory)
        assert openvino_backend.has_room(net, 1, 1, 1, None) == room


def test_smoothing_changes_nothing_without_rounding() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((5, 8)).astype(np.float32)
    values = rng.standard_normal((20, 8)).astype(np.float32) * np.float32([1, 1, 100, 1, 0.01, 1, 1, 0])
    factors = smoothing_factors(values.min(axis=0), values.max(axis=0), weights)
    np.testing.assert_allclose(
        (values / factors) @ (weights * factors).T, values @ weights.T, rtol=1e-4, atol=1e-4
    )
    reach = np.abs(values).max(axis=0)[:5]
    assert np.ptp(np.log(reach / factors[:5])) < np.ptp(np.log(reach)) / 2  # more even
    assert np.isfinite(factors).all()


def test_ranges_hold_every_value_and_are_kept(tmp_path: Path) -> None:
    net = ElasticViT(tiny_trunk()).eval()
    one, other = images(3), 3 * images(2)
    apart, both = [measure_ranges(net, [batch]) for batch in (one, other)], measure_ranges(net, [one, other])
    for name, ends in both.items():
        assert torch.equal(ends[0], torch.minimum(apart[0][name][0], apart[1][name][0]))
        assert torch.equal(ends[1], torch.maximum(apart[0][name][1], apart[1][name][1]))
    assert not any(layer._forward_pre_hooks for layer in linear_layers(net).values())
    write_ranges(tmp_path / "ranges", both, net)
    found = read_ranges(tmp_path / "ranges", net)
    assert found.keys() == both.keys()
    assert all(torch.equal(found[name], both[name]) for name in both)
    with pytest.raises(ValueError, match="need at least one batch of finite images"):
        measure_ranges(net, [])
    with pytest.raises(ValueError, match="need at least one batch of finite images"):
        measure_ranges(net, [torch.full_like(one, torch.nan)])


def test_other_ranges_are_refused(tmp_path: Path) -> None:
    net, file = ElasticViT(tiny_trunk()).eval(), tmp_path / "ranges"
    with pytest.raises(DataError, match="no readable ranges"):
        read_ranges(file, net)
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no readable ranges"):
        read_ranges(file, net)
    good = measure_ranges(net, [images(1)])
    write_ranges(file, good, ElasticViT(tiny_trunk(seed=1)))
    with pytest.raises(DataError, match="of another network"):
        read_ranges(file, net)
    write_ranges(file, dict(list(good.items())[1:]), net)
    with pytest.raises(DataError, match="of another network"):
        read_ranges(file, net)
    write_ranges(file, {name: ends.flip(0) for name, ends in good.items()}, net)
    with pytest.raises(DataError, match="impossible"):
        read_ranges(file, net)


def engine(tmp_path: Path, backend: str, schedules: tuple[TokenSchedule, ...] = (PLAIN, IN_INT8)) -> Engine:
    settings = EngineSettings(schedules, (1, 2), "cpu", "fp32", backend, ranges=tmp_path / "ranges")  # type: ignore[arg-type]
    return Engine(ElasticViT(tiny_trunk()), TASKS, settings)


@needs_openvino
def test_an_engine_answers_in_int8(tmp_path: Path) -> None:
    net = ElasticViT(tiny_trunk()).eval()
    write_ranges(tmp_path / "ranges", measure_ranges(net, [images(4)]), net)
    able = engine(tmp_path, "openvino")
    able.warm_up()
    exact, found = (able.infer(images(2), ["three", "bare"], one) for one in (PLAIN, IN_INT8))
    for one, other in zip(exact, found, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert 0 < float(np.abs(one.logits - other.logits).max()) < 1


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_without_a_way_to_run_them_they_are_left_out(
    tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch has none, and OpenVINO needs ranges, which are not there."""
    made = engine(tmp_path, backend)
    assert made.settings.schedules == (PLAIN,)
    assert "event=int8_left_out schedules=0q" in caplog.text
    with pytest.raises(ValueError, match="int8 needs OpenVINO"):
        engine(tmp_path, backend, (IN_INT8,))


def test_the_default_has_them_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ElasticViT(tiny_trunk())
    usual = chosen_schedules(None, net, TASKS)
    assert not any(one.int8 for one in usual)
    both = chosen_schedules(None, net, TASKS, int8=True)
    assert both[: len(usual)] == usual
    more = both[len(usual) :]
    assert more == default_int8_schedules(LAYERS, net.patches)
    assert {effective_merges(one, net.patches) for one in more} <= {
        effective_merges(one, net.patches) for one in usual
    }
    assert [one.name for one in default_int8_schedules(12, 196)] == ["-20q", "-15q", "0q", f"{DECREASING}q"]
    assert chosen_schedules("0,-3q", net, TASKS)[1].int8
    where = "fedstill.cloud_server.serving.engine.chosen_schedules.missing_library"
    monkeypatch.setattr(where, lambda: "")
    settings = EngineSettings((PLAIN,), device="cpu", backend="auto")
    assert int8_fits(net, settings)
    assert not int8_fits(net, replace(settings, backend="torch"))
    assert not int8_fits(net, replace(settings, precision="fp32"))
    assert not int8_fits(net, replace(settings, memory=2**30))
    monkeypatch.setattr(where, lambda: "not installed")
    assert not int8_fits(net, settings)
