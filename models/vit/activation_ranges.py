"""What goes into the linear layers of a Vision Transformer: the least and the largest value of every channel.

A graph in int8 has to know them before it sees an image, and they are measured once, on images of its tasks. No label
is looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedstill.common.atomic_files import replace_file
from fedstill.common.errors import DataError
from fedstill.models.vit.elastic_vit import ElasticViT

WEIGHTS = "weights"
"""The key of the digest in a file of ranges."""
Ranges = Mapping[str, Tensor]
"""By name of the linear layer in the network: float32 (2, channels), the least and largest value of each channel."""


def measure_ranges(net: ElasticViT, batches: Iterable[Tensor]) -> Ranges:
    """Of all linear layers in the network's blocks, with nothing merged.

    Merging averages tokens, so what goes in at another schedule hardly ever lies outside.

    Args:
        net: in fp32.
        batches: float (n, 3, image_size, image_size) each, normalised.

    Raises:
        ValueError: no batch, or values that are not finite.
    """
    found: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].detach().flatten(0, -2).float()
        ends = torch.stack(torch.aminmax(values, dim=0))
        if name in found:
            ends = torch.stack(
                (torch.minimum(ends[0], found[name][0]), torch.maximum(ends[1], found[name][1]))
            )
        found[name] = ends

    hooks = [
        layer.register_forward_pre_hook(partial(note, name)) for name, layer in linear_layers(net).items()
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                net.features(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not found or not all(bool(ends.isfinite().all()) for ends in found.values()):
        raise ValueError("ranges: need at least one batch of finite images")
    return {name: ends.cpu() for name, ends in found.items()}


def linear_layers(net: ElasticViT) -> dict[str, nn.Linear]:
    """Those of the blocks, by name in the network."""
    return {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith("trunk.blocks.")
    }


def write_ranges(path: Path, ranges: Ranges, net: ElasticViT) -> None:
    """As safetensors with the digest of the network's weights, by rename. Raises OSError."""
    content = {name: ends.contiguous() for name, ends in ranges.items()}
    replace_file(path, save(content, {WEIGHTS: _digest(net)}))


def read_ranges(path: Path, net: ElasticViT) -> Ranges:
    """What ``write_ranges`` wrote for this network. Raises DataError, one line, if it did not."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            digest = (file.metadata() or {}).get(WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no readable ranges of activations ({error})") from None
    shapes = {name: (2, layer.in_features) for name, layer in linear_layers(net).items()}
    if digest != _digest(net) or {name: tuple(ends.shape) for name, ends in found.items()} != shapes:
        raise DataError(f"{path}: ranges of activations of another network")
    if not all(bool(ends.isfinite().all()) and bool((ends[0] <= ends[1]).all()) for ends in found.values()):
        raise DataError(f"{path}: impossible ranges of activations")
    return {name: ends.float() for name, ends in found.items()}


def _digest(net: ElasticViT) -> str:
    """Of the weights whose inputs are meant; ranges of other ones would round wrongly, and nothing would show it."""
    found = hashlib.sha256()
    for layer in linear_layers(net).values():
        found.update(layer.weight.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()
