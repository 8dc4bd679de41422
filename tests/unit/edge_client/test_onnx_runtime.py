"""An exported student answers as the network did, runs its successors, and refuses what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from helpers.exports import Exported, make_export, settled_network

from fedstill.cloud_server.export.students import export_student
from fedstill.common.errors import DataError
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students.runtime import ExportFolder
from fedstill.edge_client.students.runtime_api import FeatureArrays
from fedstill.edge_client.students.torch_runtime import TorchRuntime, load_torch
from fedstill.models.audiovisual import encoders
from fedstill.models.audiovisual.compression import CompressionNet, Precision
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.onnx_export import encoder_graph, folded_encoder_graph
from fedstill.models.audiovisual.residual import Bottleneck
from fedstill.models.audiovisual.specs import (
    Architecture,
    CheckpointError,
    EncoderSpec,
    Fusion,
    NetworkSpec,
    Stem,
    network_to_json,
)
from fedstill.models.vit.preprocess import to_tensors
from fedstill.models.weights.packing import arrays, pack

PARITY = 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_export(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def reference(exported: Exported) -> TorchRuntime:
    return TorchRuntime(exported.net, exported.store.class_names, "x", exported.levels)


def largest_difference(one: FeatureArrays, other: FeatureArrays) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def test_features_logits_and_levels_equal_torch(exported: Exported, reference: TorchRuntime) -> None:
    runtime, store = ExportFolder.open(exported.folder).runtime(), exported.store
    wanted = reference.features(store.audio, store.frames)
    found = runtime.features(store.audio, store.frames)
    assert found.audio.dtype == np.float32
    assert found.audio.std() > 0.1  # there is something to compare
    assert largest_difference(found, wanted) <= PARITY
    np.testing.assert_allclose(runtime.logits(found), reference.logits(wanted), atol=PARITY)
    np.testing.assert_allclose(
        runtime.probabilities(reference.logits(wanted)),
        reference.probabilities(reference.logits(wanted)),
        atol=1e-6,
    )
    for rate in (1, 1.5, 3):
        assert largest_difference(runtime.compress(found, rate), reference.compress(wanted, rate)) <= PARITY


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_every_fusion_head_equals_torch(fusion: Fusion, tmp_path: Path) -> None:
    made = make_export(tmp_path, fusion=fusion, int8=False)
    rng = np.random.default_rng(0)
    features = FeatureArrays(*(rng.normal(size=(5, 32)).astype(np.float32) for _ in range(2)))
    np.testing.assert_allclose(
        ExportFolder.open(made.folder).runtime().logits(features),
        TorchRuntime(made.net, made.store.class_names, "x").logits(features),
        atol=PARITY,
    )


@pytest.mark.parametrize(
    ("architecture", "stem"),
    [("resnet10", "compact"), ("resnet18", "standard"), ("resnet101", "standard")],  # both blocks, both stems
)
def test_every_architecture_keeps_its_names_and_its_answers(
    architecture: Architecture, stem: Stem, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folded or not, and with two frames; the feature width differs from the last stage's, so there is an adaptor."""
    import onnxruntime

    shallow = encoders._LAYOUTS | {
        "resnet101": (Bottleneck, (1, 2, 1, 1))
    }  # its 33 blocks are of these two kinds
    monkeypatch.setattr(encoders, "_LAYOUTS", shallow)

    store = exported.store
    spec = NetworkSpec(EncoderSpec(architecture, 4, stem), 20, 6, "concat", 1)
    net = settled_network(spec, store, seed=3)
    frames = np.repeat(store.frames, 2, axis=1)
    graph = encoder_graph(net, store.audio.shape[1:], frames.shape[1:])
    weights = {
        name for name in net.state_dict() if name.startswith("encoders.") and "num_batches" not in name
    }
    assert {tensor.name for tensor in graph.graph.initializer} >= weights
    with torch.no_grad():
        wanted = net.encoders(*to_tensors(store.audio, frames))
    folded = folded_encoder_graph(net, store.audio.shape[1:], frames.shape[1:])
    assert not [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    found = onnxruntime.InferenceSession(folded.SerializeToString()).run(
        None, {"audio": store.audio, "frames": frames}
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=PARITY, rtol=PARITY)


def test_the_export_leaves_the_network_in_evaluation_mode(exported: Exported) -> None:
    shapes = exported.store.audio.shape[1:], exported.store.frames.shape[1:]
    for graph in (encoder_graph, folded_encoder_graph):
        graph(exported.net, *shapes)
        assert not any(part.training for part in exported.net.modules())


def test_a_later_student_runs_in_the_same_graphs(exported: Exported) -> None:
    store = exported.store
    later = settled_network(exported.net.spec, store, seed=2)
    names = store.class_names
    runtime = ExportFolder.open(exported.folder).load(
        arrays(later), network_to_json(later.spec), names, "later"
    )
    reference = load_torch(arrays(later), network_to_json(later.spec), names, "later")
    wanted = reference.features(store.audio, store.frames)
    assert largest_difference(runtime.features(store.audio, store.frames), wanted) <= PARITY
    np.testing.assert_allclose(runtime.logits(wanted), reference.logits(wanted), atol=PARITY)
    assert runtime.version == "later"


def test_equal_tensors_stay_apart_in_the_graph(exported: Exported) -> None:
    """A fresh network has dozens of equal batch norms; were they one initializer, a later student would not fit."""
    fresh = AudioVisualNet(exported.net.spec)
    graph = encoder_graph(fresh.eval(), exported.store.audio.shape[1:], exported.store.frames.shape[1:])
    assert not [node for node in graph.graph.node if node.op_type == "Identity"]


def test_int8_is_near_and_smaller(exported: Exported, reference: TorchRuntime) -> None:
    runtime, store = ExportFolder.open(exported.folder).runtime(int8=True), exported.store
    wanted = reference.features(store.audio, store.frames)
    found = runtime.features(store.audio, store.frames)
    for one, other in zip(found, wanted, strict=True):
        cosine = (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
        assert cosine.min() > 0.98
    graph = onnx.load(exported.folder / "encoders.int8.onnx")
    quantised = [tensor for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    values = sum(int(np.prod(tensor.dims)) for tensor in quantised)
    assert values > 0.9 * sum(weight.numel() for weight in exported.net.encoders.parameters())
    per_channel = [node for node in graph.graph.node if node.op_type == "DequantizeLinear"]
    assert any(attribute.name == "axis" for node in per_channel for attribute in node.attribute)
    assert max(abs(int(onnx.numpy_helper.to_array(one).min())) for one in quantised) <= 64  # seven bits


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("rate", [1.0, 1.5, 3.0])
def test_a_level_is_evaluated_as_in_torch(
    rate: float, precision: Precision, exported: Exported, reference: TorchRuntime
) -> None:
    runtime = ExportFolder.open(exported.folder).runtime()
    features = reference.features(exported.store.audio, exported.store.frames)
    weights = pack(CompressionNet(32, 6, rate).state_dict())
    np.testing.assert_allclose(
        runtime.level_logits(features, rate, precision, weights),
        reference.level_logits(features, rate, precision, weights),
        atol=PARITY,
    )
    with pytest.raises(ValueError, match=r"^(compressor|weights): "):
        runtime.level_logits(features, 2.0, precision, weights)


def test_no_clips_give_no_features(exported: Exported) -> None:
    runtime, store = ExportFolder.open(exported.folder).runtime(), exported.store
    found = runtime.features(store.audio[:0], store.frames[:0])
    assert found.audio.shape == found.visual.shape == (0, 32)


def test_the_description_says_what_the_student_expects(exported: Exported) -> None:
    described = ExportFolder.open(exported.folder).described
    assert described.class_names == exported.store.class_names
    assert described.audio_shape == exported.store.audio.shape[1:]
    assert described.rates == (1.5, 3.0)
    assert described.training_prior == pytest.approx([1 / 6] * 6)


def test_the_graphs_are_valid_onnx(exported: Exported) -> None:
    for path in exported.folder.glob("*.onnx"):
        onnx.checker.check_model(str(path))


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("student.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "not what was"),
        ("head.onnx", lambda path: path.unlink(), "no such file"),
        ("meta.json", lambda path: path.unlink(), "no such file"),
        ("meta.json", lambda path: path.write_text("{"), "is no exported student"),
        ("meta.json", lambda path: path.write_text('{"format": 1}'), "missing"),
        ("meta.json", lambda path: path.write_text(path.read_text().replace(": 1,", ": 9,", 1)), "format: 9"),
    ],
)
def test_a_spoiled_export_is_refused_in_one_line(
    name: str, spoil: Callable[[Path], None], says: str, exported: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(exported.folder, folder)
    spoil(folder / name)
    with pytest.raises(DeviceError, match=says) as refused:
        ExportFolder.open(folder)
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_is_refused(exported: Exported, tmp_path: Path) -> None:
    folder, store = ExportFolder.open(exported.folder), exported.store
    state, names = arrays(exported.net), store.class_names
    other = network_to_json(replace(exported.net.spec, feature_width=16))
    mine = network_to_json(exported.net.spec)
    with pytest.raises(DeviceError, match="another network"):
        folder.load(state, other, names, "v")
    with pytest.raises(ValueError, match=r"^weights: encoders\.\S+ needs float32 .* is missing$"):
        folder.load({}, mine, names, "v")
    wrong = state | {"head.joint.classifier.bias": np.zeros(5, np.float32)}
    with pytest.raises(
        ValueError, match=r"^weights: head\.joint\.classifier\.bias needs float32 \(6,\), is float32 \(5,\)$"
    ):
        folder.load(wrong, mine, names, "v")
    runtime = folder.runtime()
    with pytest.raises(ValueError, match=r"^audio: needs float32"):
        runtime.features(store.audio[:, :-1], store.frames)
    with pytest.raises(ValueError, match=r"^frames: needs uint8"):
        runtime.features(store.audio, store.frames.astype(np.float32))
    with pytest.raises(ValueError, match=r"^rate: 2 has no compressor here \(known: 1, 1\.5, 3\)"):
        runtime.compress(runtime.features(store.audio, store.frames), 2)


def test_a_user_can_only_export_what_makes_sense(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        export_student(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(DataError, match="give a clip store with --store"):
        export_student(exported.stem, tmp_path / "out", int8=True)
    with pytest.raises(DataError, match="choose another --out"):
        export_student(exported.stem, exported.stem.parent)
    strange = replace(exported.store, class_names=("a", "b"))
    with pytest.raises(DataError, match="not those that the student was trained with"):
        export_student(exported.stem, tmp_path / "out", store=strange)
    plain = export_student(exported.stem, tmp_path / "out")
    assert export_student(exported.stem, tmp_path / "out") == plain  # an earlier export is replaced
    assert plain.training_prior == ()
    with pytest.raises(DeviceError, match="export it with --int8"):
        ExportFolder.open(tmp_path / "out").runtime(int8=True)
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["version"] == plain.version
