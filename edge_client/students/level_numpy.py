"""What a device computes outside its graphs, in numpy: softmax, and one compression level with the cloud's head.

The level is only for evaluation (Table 5.3), in which a device also plays the cloud's part;
``models.audiovisual.compression`` is the same in torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from fedstill.edge_client.students.runtime_api import FeatureArrays
from fedstill.models.audiovisual.levels import MODALITIES, Precision, compressed_width

Array = npt.NDArray[np.float32]


def softmax(logits: Array) -> Array:
    """float32 (n, classes) -> rows that sum to 1."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: Array = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def level_logits(
    features: FeatureArrays, classes: int, rate: float, precision: Precision, weights: npt.NDArray[np.uint8]
) -> Array:
    """float32 (n, classes) from features that went through a level's compressor, precision and head.

    Args:
        features: float32 (n, feature_width) each.
        weights: safetensors of a ``CompressionNet``, uint8 (bytes,).

    Raises:
        ValueError: weights that do not belong to this level.
    """
    try:
        state = safetensors.numpy.load(weights.tobytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"compressor: not a safetensors block ({error})") from error
    full = features.audio.shape[1]
    width = compressed_width(full, rate)
    sent = []
    for modality, values in features._asdict().items():
        if width != full:
            values = _linear(state, f"compressor.{modality}", values, width)
        sent.append(received(values, precision))
    joined = np.concatenate(sent, axis=1)
    assert joined.shape[1] == MODALITIES * width
    return _linear(state, "head", joined, classes)


def received(values: Array, precision: Precision) -> Array:
    """What arrives of float32 (n, width) that was sent in this precision (see
    ``models.audiovisual.compression.quantise``)."""
    if precision is Precision.FP16:
        return values.astype(np.float16).astype(np.float32)
    if precision is Precision.INT8:
        peak = np.abs(values).max(axis=1, keepdims=True)
        scale = np.where(peak > 0, peak / np.float32(127), np.float32(1)).astype(np.float32)
        steps: Array = np.clip(np.rint(values / scale), -127, 127)
        return steps * scale
    return values


def _linear(state: dict[str, Array], name: str, values: Array, outputs: int) -> Array:
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if (
        weight is None
        or bias is None
        or weight.shape != (outputs, values.shape[1])
        or bias.shape != (outputs,)
    ):
        raise ValueError(f"compressor: {name} is not a layer from {values.shape[1]} to {outputs}")
    result: Array = values @ weight.T + bias
    return result
