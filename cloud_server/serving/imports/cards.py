"""What is known of a found trunk, as a card: from transformers' files, or from timm's name and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from fedstill.cloud_server.serving.engine.trunk import expected_pictures, make_net, pictures
from fedstill.cloud_server.serving.engine.weights_card import OURS, WeightsCard, read_card
from fedstill.cloud_server.serving.imports import huggingface_vit
from fedstill.cloud_server.serving.imports.positions import grid_side, resize_positions
from fedstill.cloud_server.serving.imports.read_state import ImportFault
from fedstill.cloud_server.serving.imports.source_files import SourceFiles
from fedstill.common.dataclass_codec import to_plain
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess_settings import Preprocess

Weights = dict[str, Tensor]


def own_card(files: SourceFiles, sha256: str, architecture: str | None) -> WeightsCard | None:
    """The card of an earlier import, if it is that of these weights.

    architecture: as given, None if it was not.

    Raises:
        DataError: a card that is damaged, of a newer fedstill, or of another architecture than was given.
    """
    stated = (files.card or {}).get(OURS)
    if not isinstance(stated, Mapping) or stated.get("sha256") != sha256:
        return None
    card = read_card(files.weights, sha256)
    if card is not None and architecture not in (None, card.architecture):
        raise ImportFault(
            f"--architecture {architecture}: the card of {files.weights} says {card.architecture}: drop it"
        )
    return card


def transformers_card(files: SourceFiles, inside: Mapping[str, Tensor]) -> tuple[WeightsCard, Weights]:
    """The card without classes, and the weights under timm's names. Raises ImportFault, TrunkError."""
    if files.config is None or "model_type" not in files.config:
        raise ImportFault(
            f"{files.weights}: has names of transformers, and no config.json of it beside: copy it there"
        )
    try:
        arguments, epsilon = huggingface_vit.network(files.config)
        state = huggingface_vit.timm_names(inside)
        prepared = huggingface_vit.pictures(files.config, files.processor, arguments["img_size"])
        card = WeightsCard(
            huggingface_vit.ARCHITECTURE,
            arguments,
            preprocess=pictures(prepared, files.weights.name),
            layer_norm_eps=epsilon,
            multi_label=huggingface_vit.multi_label(files.config),
        )
    except (ValueError, OverflowError) as error:  # a number that is too large for a float
        if isinstance(error, ImportFault):
            raise
        raise ImportFault(f"{files.weights}: {error}") from None
    return card, state


def timm_card(
    files: SourceFiles, inside: Mapping[str, Tensor], notes: Mapping[str, Any], architecture: str | None
) -> tuple[WeightsCard, Weights]:
    """The same of a timm state dict, for the size of pictures that its positions have.

    architecture: as given; else the ``config.json``'s, else the checkpoint's. Raises ImportFault, TrunkError.
    """
    config = files.config or {}
    name = architecture or config.get("architecture") or notes.get("arch") or notes.get("model")
    if not isinstance(name, str):
        raise ImportFault(f"{files.weights}: nothing says which timm model it is: give --architecture")
    try:
        card = WeightsCard(name, _arguments(config, notes, inside))
        net = make_net(card, 0, inside)
        ElasticViT(net)  # what is not supported is said before what does not fit
        if net.pos_embed is not None and "pos_embed" in inside:
            before = 0 if net.no_embed_class else net.num_prefix_tokens
            side = grid_side(inside["pos_embed"], before) * net.patch_embed.patch_size[0]
            if side != net.patch_embed.img_size[0]:
                card = replace(card, model_args={**card.model_args, "img_size": side})
        known = _picture_values(config.get("pretrained_cfg"), notes)
    except ValueError as error:
        raise ImportFault(f"{files.weights}: {error}") from None
    usual = to_plain(expected_pictures(name, {}))
    return replace(card, preprocess=pictures({**usual, **known}, name)), dict(inside)


def resized(card: WeightsCard, state: Weights, image_size: int | None) -> tuple[WeightsCard, Weights]:
    """For pictures of another size; the same for None. Raises ImportFault."""
    if image_size is None:
        return card, state
    net = make_net(card, 0, state)
    patch = net.patch_embed.patch_size[0]
    if image_size % patch or not patch <= image_size <= 4096:
        raise ImportFault(f"--image-size {image_size}: is not a multiple of {patch}, up to 4096")
    changed = replace(card, model_args={**card.model_args, "img_size": image_size})
    if net.pos_embed is None or "pos_embed" not in state:
        return changed, state
    before = 0 if net.no_embed_class else net.num_prefix_tokens
    try:
        positions = resize_positions(state["pos_embed"], image_size // patch, before)
    except ValueError as error:
        raise ImportFault(str(error)) from None
    return changed, {**state, "pos_embed": positions}


def _arguments(
    config: Mapping[str, Any], notes: Mapping[str, Any], inside: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Of a ``config.json``, of the training, and what the names of the weights say of the pooling."""
    given = config.get("model_args")
    made = dict(given) if isinstance(given, Mapping) else {}
    pooling = config.get("global_pool") or notes.get("gp")
    if "fc_norm.weight" in inside and "norm.weight" not in inside:
        pooling = pooling or "avg"
    return {**({"global_pool": pooling} if pooling else {}), **made}


def _picture_values(config: object, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Of timm's ``pretrained_cfg``, or of the arguments of its training, where they say something."""
    said = config if isinstance(config, Mapping) else notes
    found = {one.name: said[one.name] for one in fields(Preprocess) if said.get(one.name) not in (None, "")}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
