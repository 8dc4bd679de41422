"""The shared trunk from a weights file: a timm state dict as safetensors, and the timm architecture that it fits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedstill.cloud_server.serving.engine.weights_card import WeightsCard, read_card
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import DataError
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess_settings import Preprocess

BUILD_ERRORS = (
    RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError, ArithmeticError,
)  # fmt: skip
"""What timm raises for arguments that make no network."""
IMPORT = "bring it into this form with: fedstill import"


class TrunkError(DataError):
    """The weights cannot be used; one line that says what to type instead."""


@dataclass(frozen=True)
class Trunk:
    """A loaded trunk.

    Attributes:
        architecture: timm's name; of imported weights, the name of their file.
        fingerprint: SHA-256 of its file; tasks name the trunk that they were trained on.
        card: of imported weights.
    """

    net: ElasticViT
    architecture: str
    fingerprint: str
    card: WeightsCard | None = None


def load_trunk(
    weights: Path,
    architecture: str | None = None,
    proportional_attention: bool = True,
    preprocess: Mapping[str, Any] | None = None,
) -> Trunk:
    """Read weights into timm's ViT or DeiT, fp32, for inference.

    Args:
        weights: safetensors with timm's key names, any float type.
        architecture: timm model name, with or without tag; by default what the card beside the file says (see
            ``weights_card.py``), else what the file's name begins with, tag included
            (``vit_tiny_patch16_224.augreg_in21k.safetensors``, or with ``_`` for the dot).
        proportional_attention: see :class:`ElasticViT`.
        preprocess: fields of :class:`Preprocess` that differ from those of the card or of timm's ``pretrained_cfg``.

    Raises:
        TrunkError: no such file, not safetensors, an unknown or unsupported architecture, weights that do not fit,
            or pictures in a form that is not supported.
        DataError: a card that is damaged, or of another file.
    """
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise TrunkError(f"{weights}: cannot be read ({error.strerror}): check the path") from error
    try:
        state = {name: tensor.float() for name, tensor in load(content).items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise TrunkError(
            f"{weights}: is not a safetensors file: download or export it again, or {IMPORT}"
        ) from error
    fingerprint = hashlib.sha256(content).hexdigest()
    card = read_card(weights, fingerprint) if architecture is None else None
    if card is not None:
        name, values = weights.stem, {**to_plain(card.preprocess), **(preprocess or {})}
        described = replace(card, preprocess=pictures(values, weights.name))
    else:
        name = architecture or _named_after(weights)
        described = WeightsCard(name, preprocess=expected_pictures(name, preprocess or {}))
    elastic = assemble(described, state, str(weights), proportional_attention)
    return Trunk(elastic, name, fingerprint, card)


def assemble(
    card: WeightsCard, state: Mapping[str, Tensor], source: str, proportional_attention: bool = True
) -> ElasticViT:
    """The network that a card describes, with the weights of ``state``. Raises TrunkError, which names ``source``."""
    head = state.get("head.bias")
    classes = len(head) if head is not None and head.ndim == 1 else 0
    if card.class_names and len(card.class_names) != classes:
        raise TrunkError(
            f"{source}: has a head of {classes} classes, and its description names {len(card.class_names)}"
        )
    net = make_net(card, classes, state)
    try:
        elastic = ElasticViT(net, proportional_attention, card.preprocess)
    except ValueError as error:
        raise TrunkError(f"architecture {card.architecture}: {error}") from None
    try:
        net.load_state_dict(state, strict=True)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise TrunkError(
            f"{source}: does not fit {card.architecture} ({reason[:200]}): give --architecture, or {IMPORT}"
        ) from error
    return elastic


def make_net(card: WeightsCard, classes: int, state: Mapping[str, Tensor]) -> VisionTransformer:
    """timm's network for a card, with random weights and frozen.

    state: that will be loaded. A description of another size is refused before it fills the memory.

    Raises:
        TrunkError: timm makes no such network, or it has another size than the weights.
    """
    if not timm.is_model(card.architecture.partition(".")[0]):
        raise TrunkError(
            f"architecture {card.architecture!r} is not a timm model: use one like vit_tiny_patch16_224"
        )
    _check_size(card, state)
    try:
        net = timm.create_model(
            card.architecture, pretrained=False, num_classes=classes, **dict(card.model_args)
        )
    except BUILD_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise TrunkError(f"architecture {card.architecture}: timm cannot build it ({reason[:200]})") from None
    if not isinstance(net, VisionTransformer):
        raise TrunkError(f"architecture {card.architecture}: is not a Vision Transformer of timm")
    if card.layer_norm_eps is not None:
        for part in net.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = card.layer_norm_eps
    return net.eval().requires_grad_(False)


def _check_size(card: WeightsCard, state: Mapping[str, Tensor]) -> None:
    """What the card says, before any memory is taken for it."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    patch = state.get("patch_embed.proj.weight")
    shape = tuple(patch.shape) if patch is not None and patch.ndim == 4 else None
    real = {"depth": len(blocks)} | ({"embed_dim": shape[0], "patch_size": shape[2]} if shape else {})
    for name, value in real.items():
        if card.model_args.get(name, value) != value:
            raise TrunkError(
                f"the description says {name} {card.model_args[name]}, and the weights have {value}: "
                "it is of another model"
            )


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


def expected_pictures(name: str, changes: Mapping[str, Any]) -> Preprocess:
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
    return pictures({**known, **changes}, name)


def pictures(values: Mapping[str, Any], name: str) -> Preprocess:
    """The preparation with these values, for weights of that name. Raises TrunkError for one that cannot be."""
    try:
        return from_plain(Preprocess, dict(values))
    except ValueError as error:
        raise TrunkError(f"pictures for {name}, by timm or --preprocess: {error}") from None
