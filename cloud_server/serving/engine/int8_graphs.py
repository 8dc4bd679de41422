"""An OpenVINO model whose linear layers multiply in int8, eight bits of weights by eight bits of activations.

Activations of Vision Transformers have a few channels that are far larger than the others, and with one scale for all
of them the others would have a few steps. So every channel is divided by a factor that its weights are multiplied with,
which changes nothing but evens out both (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438). All else stays in floating
point.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.engine.openvino_library import library
from fedstill.common.provenance import cpu_flags
from fedstill.models.vit.activation_ranges import Ranges, linear_layers
from fedstill.models.vit.elastic_vit import ElasticViT

SMOOTHING = 0.75
"""Which part of the differences between channels is moved from activations to weights, the paper's alpha. Chosen on
validation images of three tasks (docs/decisions/064-int8-schedules.md)."""
ACTIVATION_LEVELS = 256
"""Unsigned, with a zero point."""
LEAST = 1e-5
"""A channel that is never larger counts as this large."""

Floats = npt.NDArray[np.float32]


def quantise(model: Any, net: ElasticViT, ranges: Ranges) -> int:
    """Have every linear layer of the network that is in the model multiply in int8; in place.

    Args:
        model: an ``openvino.Model`` of ``net`` at some schedule.
        net: with the weights that are in the model.
        ranges: of what goes into its linear layers.

    Returns:
        How many layers were changed.
    """
    names: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
    for name, layer in linear_layers(net).items():  # layers with the same weights share their ranges
        weight = layer.weight.detach().numpy()
        names.setdefault((weight.shape, weight.tobytes()), []).append(name)
    changed = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant" or len(constant.shape) != 2:
            continue
        as_is = bool(node.get_attributes()["transpose_b"])  # (outputs, inputs), as in torch
        values = np.ascontiguousarray(constant.data if as_is else constant.data.T, dtype=np.float32)
        alike = [ranges[name].numpy() for name in names.get((values.shape, values.tobytes()), ())]
        if not alike:  # no layer of the blocks
            continue
        low, high = np.min([ends[0] for ends in alike], axis=0), np.max([ends[1] for ends in alike], axis=0)
        _round(node, values, smoothing_factors(low, high, values), low, high, as_is)
        changed += 1
    return changed


def smoothing_factors(low: Floats, high: Floats, weights: Floats) -> Floats:
    """What each input channel is divided by and its weights are multiplied with; float32 (inputs,), around 1.

    Args:
        low, high: of the activations, (inputs,).
        weights: (outputs, inputs).
    """
    activations = np.maximum(np.maximum(np.abs(low), np.abs(high)), LEAST)
    strongest = np.maximum(np.abs(weights).max(axis=0), LEAST)
    logs = SMOOTHING * np.log(activations) - (1 - SMOOTHING) * np.log(strongest)
    factors: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def activation_ends(low: Floats, high: Floats, factors: Floats) -> tuple[float, float]:
    """The least and the largest smoothed activation, with 0 between them."""
    return min(0.0, float((low / factors).min())), max(LEAST, float((high / factors).max()))


@cache
def weight_levels() -> int:
    """Of weights, signed and symmetric: 8 bits, or 7 on a processor that adds up products of 8 bits in 16 and not in 32
    (no VNNI): two with larger weights would not fit."""
    return 255 if any("vnni" in flag for flag in cpu_flags()) else 127


def weight_reach(weights: Floats) -> Floats:
    """The largest size of each output's weights, (outputs, 1)."""
    reach: Floats = np.maximum(np.abs(weights).max(axis=1, keepdims=True), LEAST)
    return reach


def _round(node: Any, weights: Floats, factors: Floats, low: Floats, high: Floats, as_is: bool) -> None:
    """Put roundings in front of both inputs of a matrix product; OpenVINO then multiplies what they round to.

    The division is a step of its own. As part of the rounding, with ends that differ by channel, it is not slower, but
    behind a norm OpenVINO 2026.4 computes something else then, and not even the same each time it is compiled.
    """
    ops = library().opset8
    rank = len(node.input_value(0).get_partial_shape())
    shrunk = ops.multiply(node.input_value(0), ops.constant((1 / factors).reshape((1,) * (rank - 1) + (-1,))))
    ends = [
        ops.constant(np.full((1,) * rank, end, np.float32)) for end in activation_ends(low, high, factors)
    ]
    rounded = ops.fake_quantize(shrunk, *ends, *ends, ACTIVATION_LEVELS)
    stronger = weights * factors
    reach = weight_reach(stronger)
    if not as_is:
        stronger, reach = np.ascontiguousarray(stronger.T), np.ascontiguousarray(reach.T)
    limits = [ops.constant(-reach), ops.constant(reach)]
    constant = ops.fake_quantize(ops.constant(stronger), *limits, *limits, weight_levels())
    node.input(0).replace_source_output(rounded.output(0))
    node.input(1).replace_source_output(constant.output(0))
