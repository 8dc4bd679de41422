"""Students as ONNX graphs, so that a device needs onnxruntime and no torch.

A graph of :func:`encoder_graph`, :func:`statistics_graph`, :func:`head_graph` or :func:`compressor_graph` holds no
weights. Its initializers
bear the state dict's names and point into the student's own safetensors file, which ONNX calls external data:
the file exists once, a runtime maps it, and a device puts the weights of a new student into the same graph without
torch. :func:`folded_encoder_graph` is the exception; quantisation starts from it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor, nn

from fedstill.models.audiovisual.compression import Compressor
from fedstill.models.audiovisual.network import AudioVisualNet, Features
from fedstill.models.audiovisual.own_clips import OWN
from fedstill.models.vit.preprocess import FRAME_MEAN, FRAME_STD

OPSET = 17
Shape = tuple[int, ...]


class _StoredClipEncoders(nn.Module):
    """The encoders on clips as stored, so that a device has no preprocessing that could differ from the cloud's."""

    def __init__(self, net: AudioVisualNet) -> None:
        super().__init__()
        self.encoders = net.encoders

    def forward(self, audio: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        pictures = frames.float() / (255 * FRAME_STD) - FRAME_MEAN / FRAME_STD
        found: Features = self.encoders(audio.unsqueeze(1), pictures)
        return found.audio, found.visual


class _JointHead(nn.Module):
    def __init__(self, net: AudioVisualNet) -> None:
        super().__init__()
        self.head = nn.ModuleDict({"joint": net.head.joint})

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.head["joint"](audio, visual)
        return logits


class _CompressedFeatures(nn.Module):
    def __init__(self, compressor: Compressor) -> None:
        super().__init__()
        self.compressor = compressor

    def forward(self, audio: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        reduced: Features = self.compressor(Features(audio, visual))
        return reduced.audio, reduced.visual


def encoder_graph(net: AudioVisualNet, audio: Shape, frames: Shape) -> ModelProto:
    """Stored clips -> features, without weights.

    Args:
        net: in evaluation mode.
        audio: (bins, steps) of one clip; input ``audio`` is float32 (n, bins, steps).
        frames: (count, channels, size, size) of one clip; input ``frames`` is uint8 (n, count, channels, size, size).

    Returns:
        a graph with outputs ``audio_features`` and ``visual_features``, float32 (n, feature_width) each.
    """
    return _without_weights(_traced_encoders(net, audio, frames, fold=False), net.state_dict())


def folded_encoder_graph(net: AudioVisualNet, audio: Shape, frames: Shape) -> ModelProto:
    """Like :func:`encoder_graph`, with its weights inside and every batch norm folded into its convolution."""
    return _traced_encoders(net, audio, frames, fold=True)


def head_graph(net: AudioVisualNet) -> ModelProto:
    """Features -> logits of the joint head, float32 (n, classes), without weights."""
    width = net.spec.feature_width
    return _without_weights(_on_features(_JointHead(net), width, ["logits"]), net.state_dict())


def compressor_graph(compressor: Compressor, feature_width: int) -> ModelProto:
    """Features -> reduced features (thesis 5.3.5), without weights; its names are those of a ``CompressionNet``."""
    module = _CompressedFeatures(compressor)
    reduced = ["reduced_audio", "reduced_visual"]
    return _without_weights(_on_features(module, feature_width, reduced), module.state_dict())


def statistics_graph(encoders: ModelProto) -> ModelProto:
    """Stored clips -> the batch norm statistics of just these clips, without weights.

    Every batch norm normalises by the statistics of its own inputs, as in ``batch_statistics.with_statistics_of``. So
    all clips belong into one run, and a student with these statistics answers as if they were one batch.

    Args:
        encoders: of :func:`encoder_graph`.

    Returns:
        a graph with the further input ``weight``, float32 (1,), of the clips' statistics against the student's own.
        Its outputs are named as in the state dict, after ``OWN``.
    """
    found = ModelProto()
    found.CopyFrom(encoders)
    graph, nodes, outputs = found.graph, [], []
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            mean, variance = node.input[3:5]
            nodes += _moments(node.input[0], mean, variance)
            node.input[3], node.input[4] = OWN + mean, OWN + variance
            outputs += [mean, variance]
        nodes.append(node)
    made = onnx.helper.make_tensor_value_info
    del graph.output[:]
    graph.output.extend(made(OWN + name, TensorProto.FLOAT, sizes[name]) for name in outputs)
    graph.input.append(made("weight", TensorProto.FLOAT, [1]))
    copied = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
    return found


def _moments(values: str, mean: str, variance: str) -> list[NodeProto]:
    """Mean and variance per channel of ``values`` (clips, channels, height, width), mixed with the student's own."""
    kept, centred, squared, found, spread = (
        f"{OWN}{mean}/{part}" for part in ("kept", "centred", "squared", "found", "spread")
    )
    make, over = onnx.helper.make_node, [0, 2, 3]
    nodes = [
        make("ReduceMean", [values], [found], axes=over, keepdims=0),
        make("ReduceMean", [values], [kept], axes=over, keepdims=1),
        make("Sub", [values, kept], [centred]),
        make("Mul", [centred, centred], [squared]),
        make("ReduceMean", [squared], [spread], axes=over, keepdims=0),
    ]
    for before, after in ((mean, found), (variance, spread)):
        step, part = f"{after}/step", f"{after}/part"
        nodes += [
            make("Sub", [after, before], [step]),
            make("Mul", [step, "weight"], [part]),
            make("Add", [before, part], [OWN + before]),
        ]
    return nodes


def point_to(graph: ModelProto, packed: npt.NDArray[np.uint8], location: str) -> bytes:
    """The graph as ONNX bytes whose initializers lie in a safetensors file beside it.

    Args:
        graph: without weights.
        packed: the safetensors file, uint8 (bytes,).
        location: its name, relative to the graph's own folder.
    """
    pointed = ModelProto()
    pointed.CopyFrom(graph)
    header_bytes = int.from_bytes(packed[:8].tobytes(), "little")
    header = json.loads(packed[8 : 8 + header_bytes].tobytes())
    for tensor in pointed.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            begin, end = header[tensor.name]["data_offsets"]
            place = {"location": location, "offset": 8 + header_bytes + begin, "length": end - begin}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
    return pointed.SerializeToString()


def weight_shapes(graph: ModelProto) -> dict[str, Shape]:
    """The tensors that a graph without weights needs, by name."""
    return {
        tensor.name: tuple(tensor.dims)
        for tensor in graph.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }


def _traced_encoders(net: AudioVisualNet, audio: Shape, frames: Shape, *, fold: bool) -> ModelProto:
    clips = torch.zeros(2, *audio), torch.zeros(2, *frames, dtype=torch.uint8)
    return _trace(
        _StoredClipEncoders(net), clips, ["audio", "frames"], ["audio_features", "visual_features"], fold
    )


def _on_features(module: nn.Module, feature_width: int, outputs: Sequence[str]) -> ModelProto:
    features = torch.zeros(2, feature_width), torch.zeros(2, feature_width)
    return _trace(module, features, ["audio_features", "visual_features"], outputs, fold=False)


def _trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    fold: bool,
) -> ModelProto:
    """torch's exporter that needs no further package; the number of clips stays variable."""
    written = BytesIO()
    module.eval()
    module.training = (
        not fold
    )  # of this shell alone: else the exporter makes one tensor of all that are equal
    with warnings.catch_warnings():  # it is deprecated; docs/decisions/014 says why it is used
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            inputs,
            written,  # type: ignore[arg-type] # the exporter of dynamo=False takes a buffer, too
            input_names=input_names,
            output_names=output_names,
            dynamic_axes={name: {0: "clips"} for name in (*input_names, *output_names)},
            opset_version=OPSET,
            do_constant_folding=fold,
            training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )
    return onnx.load_model_from_string(written.getvalue())


def _without_weights(graph: ModelProto, state: Mapping[str, Tensor]) -> ModelProto:
    """Drop the values of all initializers that the state dict has."""
    for tensor in graph.graph.initializer:
        if tensor.name in state:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    return graph
