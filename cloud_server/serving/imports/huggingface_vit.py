"""ViT and DeiT as Hugging Face's transformers saves them: their ``config.json``, pictures and names of weights.

The networks are timm's in other words. Queries, keys and values are three layers instead of one, and DeiT's
distillation token, which the classifier does not read, is a register token. transformers itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

KINDS = ("vit", "deit")
"""Values of ``model_type``."""
ARCHITECTURE = "vit_base_patch16_224"
"""A plain ViT of timm, whose sizes are all given."""
DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "patch_size": 16, "image_size": 224, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}  # fmt: skip
"""Of ``ViTConfig`` and ``DeiTConfig``: a saved configuration may leave out what is usual."""
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
"""transformers' names -> timm's."""
TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")
"""In files, and in the memory of transformers 5."""
PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc1": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc2": "mlp.fc2",
}
QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
NEWER_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
UNUSED = ("pooler.", "embeddings.mask_token")
"""Of pre-training; a classifier reads the normalised class token."""
DECODED_AS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters."""
SHRUNK = 256 / 224
"""Side of DeiT's resized pictures over that of its input."""


def network(config: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """timm's arguments for a ``config.json``, and the epsilon of the layer norms.

    Raises:
        ValueError: another kind of model, or one that is not supported.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"model_type {str(kind)[:40]!r} is not one of {', '.join(KINDS)}")
    if "WithTeacher" in str(config.get("architectures")):
        raise ValueError("a DeiT with two classifiers is not supported: fine-tune DeiTForImageClassification")
    found = {name: config.get(name, usual) for name, usual in DEFAULTS.items()}
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if type(found[name]) is not int or found[name] < 1:
            raise ValueError(f"{name} {str(found[name])[:20]!r} is not a whole number above 0")
    if str(found["hidden_act"]) not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act {str(found['hidden_act'])[:20]!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    if found["num_channels"] != 3:
        raise ValueError(f"num_channels {str(found['num_channels'])[:20]!r}: pictures here have 3")
    epsilon = found["layer_norm_eps"]
    if not isinstance(epsilon, float | int) or not 0 < epsilon < 1:
        raise ValueError(f"layer_norm_eps {str(epsilon)[:20]!r} is not between 0 and 1")
    return {
        "img_size": _side(found["image_size"], "image_size"),
        "patch_size": _side(found["patch_size"], "patch_size"),
        "embed_dim": found["hidden_size"],
        "depth": found["num_hidden_layers"],
        "num_heads": found["num_attention_heads"],
        "mlp_ratio": found["intermediate_size"] / found["hidden_size"],
        "qkv_bias": bool(found["qkv_bias"]),
        "act_layer": ACTIVATIONS[found["hidden_act"]],
        "reg_tokens": 1 if kind == "deit" else 0,
    }, float(epsilon)


def timm_names(inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A trunk's weights under timm's names. Raises ValueError for a name that is not of a ViT or DeiT."""
    made: dict[str, Tensor] = {}
    for name, value in inside.items():
        if name.startswith(UNUSED):
            continue
        found = LAYER.fullmatch(name)
        stem, kind = _parted(found[2] if found else name)
        block = f"blocks.{found[1]}." if found else ""
        if not found and name in TOP:
            made[TOP[name]] = value
        elif not found and stem in TOP:
            made[f"{TOP[stem]}.{kind}"] = value
        elif found and stem in PARTS:
            made[f"{block}{PARTS[stem]}.{kind}"] = value
        elif found and stem in (QKV[0], NEWER_QKV[0]):
            three = QKV if stem == QKV[0] else NEWER_QKV
            beginning = name.removesuffix(found[2])
            names = [f"{beginning}{one}.{kind}" for one in three]
            lacking = [one for one in names if one not in inside]
            if lacking:
                raise ValueError(f"{lacking[0]} is missing")
            made[f"{block}attn.qkv.{kind}"] = torch.cat([inside[one] for one in names])
        elif not (found and stem in (*QKV, *NEWER_QKV)):
            raise ValueError(f"{name[:80]} is not a part of a plain ViT or DeiT")
    return made


def class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Of ``id2label``; empty if it does not name ``classes`` classes."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or {str(key) for key in labels} != {
        str(one) for one in range(classes)
    }:
        return ()
    by_number = {str(key): str(value) for key, value in labels.items()}
    return tuple(by_number[str(number)] for number in range(classes))


def multi_label(config: Mapping[str, Any]) -> bool:
    """Whether it was trained with each class by itself."""
    return config.get("problem_type") == "multi_label_classification"


def pictures(config: Mapping[str, Any], processor: Mapping[str, Any] | None, side: int) -> dict[str, Any]:
    """Fields of :class:`Preprocess` for a ``preprocessor_config.json``, by default the image processor's own.

    side: of the network's input.

    Raises:
        ValueError: a preparation that is not supported.
    """
    said = {**_usual(config["model_type"], side), **(processor or {})}
    factor = said.get("rescale_factor", 1 / 255)
    if not said.get("do_rescale", True) or not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor {factor!r} is not 1/255: values are from 0 to 1 here")
    resample = said["resample"]
    if type(resample) is not int or resample not in DECODED_AS:
        raise ValueError(f"resample {str(resample)[:20]!r} is not 2 (bilinear) or 3 (bicubic)")
    normal = said.get("do_normalize", True)
    made: dict[str, Any] = {
        "mean": _channels(said.get("image_mean", 0.5)) if normal else (0.0,) * 3,
        "std": _channels(said.get("image_std", 0.5)) if normal else (1.0,) * 3,
        "interpolation": DECODED_AS[resample],
    }
    size = said["size"]
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    resized = shortest if shortest else _side(size, "size")
    cropped = _side(said.get("crop_size"), "crop_size") if said.get("do_center_crop") else resized
    if type(resized) is not int or resized < cropped:
        raise ValueError(f"size {str(size)[:60]!r} is smaller than the crop of {cropped}")
    if cropped != side:
        raise ValueError(f"pictures of {cropped} pixels, and the network takes {side}")
    return {**made, "crop_pct": cropped / resized, "crop_mode": "center" if shortest else "squash"}


def _usual(kind: str, side: int) -> dict[str, Any]:
    """Of the image processors, for networks of any size."""
    if kind == "deit":
        return {"size": round(SHRUNK * side), "resample": 3, "crop_size": side, "do_center_crop": True}
    return {"size": side, "resample": 2}


def _parted(name: str) -> tuple[str, str]:
    stem, _, kind = name.rpartition(".")
    return stem, kind


def _side(value: object, name: str) -> int:
    """Of a square: a number, two equal ones, or height and width."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} {str(value)[:40]!r} is not a square")
    return value


def _channels(value: object) -> tuple[float, ...]:
    values: Sequence[Any] = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(isinstance(one, float | int) for one in values):
        raise ValueError(f"{str(value)[:40]!r} is not one number for each of 3 channels")
    return tuple(float(one) for one in values)
