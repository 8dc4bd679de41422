"""The shared trunk from a weights file: a timm state dict as safetensors, and the timm architecture that it fits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load
from timm.models.vision_transformer import VisionTransformer

from fedstill.common.dataclass_codec import from_plain
from fedstill.common.errors import DataError
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess_settings import Preprocess


class TrunkError(DataError):
    """The weights cannot be used; one line that says what to type instead."""


@dataclass(frozen=True)
class Trunk:
    """A loaded trunk. ``fingerprint`` is the SHA-256 of its file: tasks name the trunk that they were trained on."""

    net: ElasticViT
    architecture: str
    fingerprint: str


def load_trunk(
    weights: Path,
    architecture: str | None = None,
    proportional_attention: bool = True,
    preprocess: Mapping[str, Any] | None = None,
) -> Trunk:
    """Read weights into timm's ViT or DeiT, fp32, for inference.

    Args:
        weights: safetensors with timm's key names, any float type.
        architecture: timm model name, with or without tag; by default what the file's name begins with, tag included
            (``vit_tiny_patch16_224.augreg_in21k.safetensors``, or with ``_`` for the dot).
        proportional_attention: see :class:`ElasticViT`.
        preprocess: fields of :class:`Preprocess` that differ from those of timm's ``pretrained_cfg``.

    Raises:
        TrunkError: no such file, not safetensors, an unknown or unsupported architecture, weights that do not fit,
            or pictures in a form that is not supported.
    """
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise TrunkError(f"{weights}: cannot be read ({error.strerror}): check the path") from error
    try:
        state = {name: tensor.float() for name, tensor in load(content).items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise TrunkError(f"{weights}: is not a safetensors file: download or export it again") from error
    name = architecture or _named_after(weights)
    expected = _expected_pictures(name, preprocess or {})
    head = state.get("head.bias")
    net = timm.create_model(name, pretrained=False, num_classes=0 if head is None else len(head))
    if not isinstance(net, VisionTransformer):
        raise TrunkError(f"architecture {name}: is not a Vision Transformer of timm")
    try:
        net.load_state_dict(state, strict=True)
        elastic = ElasticViT(net.eval().requires_grad_(False), proportional_attention, expected)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise TrunkError(f"{weights}: does not fit {name} ({reason[:200]}): give --architecture") from error
    return Trunk(elastic, name, hashlib.sha256(content).hexdigest())


def _named_after(weights: Path) -> str:
    fitting = [name for name in timm.list_models() if weights.name.startswith(name)]
    if not fitting:
        raise TrunkError(f"{weights.name}: does not begin with a timm model name: give --architecture")
    name = max(fitting, key=len)
    rest = weights.name.removeprefix(name)[1:]
    tags = [full.partition(".")[2] for full in timm.list_models(f"{name}.*", pretrained=True)]
    named = [tag for tag in tags if tag and _begins(rest, tag)]
    return f"{name}.{max(named, key=len)}" if named else name


def _begins(text: str, word: str) -> bool:
    """With the word, and not with a longer one."""
    return text.startswith(word) and not text.removeprefix(word)[:1].isalnum()


def _expected_pictures(name: str, changes: Mapping[str, Any]) -> Preprocess:
    """What timm says of these weights, or of the architecture's usual ones, with the caller's changes."""
    if not timm.is_model(name):
        raise TrunkError(f"architecture {name!r} is not a timm model: use one like vit_tiny_patch16_224")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        raise TrunkError(
            f"architecture {name!r}: timm has no such weights; leave out what follows the dot"
        ) from None
    known = {field.name: getattr(config, field.name) for field in fields(Preprocess)} if config else {}
    try:
        return from_plain(Preprocess, {**known, **changes})
    except ValueError as error:
        raise TrunkError(f"pictures for {name}, by timm or --preprocess: {error}") from None
