"""The description beside an imported weights file, ``NAME.json`` beside ``NAME.safetensors``.

Its layout is that of timm's ``config.json``, with what timm has no place for under ``fedstill``. Without it a weights
file has no class names, and its architecture has to be one that timm has a name for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import DataError
from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess

FORMAT = 1
OURS = "fedstill"
WHOLE_NUMBERS = {
    "img_size": 4096, "patch_size": 256, "embed_dim": 8192, "depth": 256, "num_heads": 256, "reg_tokens": 64
}  # fmt: skip
"""Arguments of timm's ``VisionTransformer``, and the largest that is taken: a file must not fill the memory."""
MOST_PATCHES = 2**16
LONGEST_NAME = 200
"""Of a class, in characters."""
SWITCHES = ("qkv_bias", "qk_norm", "class_token", "no_embed_class", "pre_norm", "final_norm", "fc_norm")
OTHERS = {"mlp_ratio": 64.0, "init_values": 10.0}
CHOICES = {"global_pool": ("token", "avg"), "act_layer": ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")}
"""All that a network of :class:`ElasticViT` can need. Any other argument is refused: some make timm read files."""


@dataclass(frozen=True)
class WeightsCard:
    """What a weights file holds.

    Attributes:
        architecture: timm model name, which ``model_args`` change.
        model_args: arguments of timm's ``VisionTransformer``.
        class_names: in the order of the head's logits; empty if there is no head.
        preprocess: of the pictures that the weights expect.
        layer_norm_eps: None for timm's.
        multi_label: each class is true or not by itself, by the sigmoid of its logit.
        sha256: of the weights file; empty before it is written.
        licence: as the source says, empty if it says none.
        origin: where the weights come from: file, its SHA-256, library.

    Raises:
        ValueError: arguments that are unknown or cannot be; begins with the field's name.
    """

    architecture: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    preprocess: Preprocess = PLAIN
    layer_norm_eps: float | None = None
    multi_label: bool = False
    sha256: str = ""
    licence: str = ""
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.model_args.items():
            if not _possible(name, value):
                raise ValueError(f"model_args: {name} = {str(value)[:40]!r} is not supported")
        side, patch = self.model_args.get("img_size"), self.model_args.get("patch_size")
        if side and patch and (side // patch) ** 2 > MOST_PATCHES:
            raise ValueError(f"model_args: img_size {side} is more than {MOST_PATCHES} patches of {patch}")
        if self.layer_norm_eps is not None and not 0 < self.layer_norm_eps < 1:
            raise ValueError(f"layer_norm_eps: {self.layer_norm_eps} is not between 0 and 1")
        if len(self.class_names) == 1 or len(set(self.class_names)) < len(self.class_names):
            raise ValueError("label_names: give at least two, all different")
        for name in self.class_names:
            if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
                raise ValueError(
                    f"label_names: {name[:40]!r} is not a name of 1 to {LONGEST_NAME} printable characters"
                )

    @property
    def text(self) -> str:
        """The JSON of the file."""
        own = {
            "format": FORMAT,
            "layer_norm_eps": self.layer_norm_eps,
            "multi_label": self.multi_label,
            "sha256": self.sha256,
            "origin": dict(self.origin),
        }
        plain = {
            "architecture": self.architecture,
            "num_classes": len(self.class_names),
            "model_args": dict(self.model_args),
            "label_names": self.class_names,
            "pretrained_cfg": {**to_plain(self.preprocess), "license": self.licence},
            OURS: own,
        }
        return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def card_path(weights: Path) -> Path:
    """Where the card of a weights file lies."""
    return weights.with_suffix(".json")


def is_foreign(path: Path) -> bool:
    """Whether there is a file that is not a card, such as a ``config.json`` of another program. Raises OSError."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (ValueError, RecursionError):
        return True
    return not isinstance(plain, dict) or OURS not in plain


def read_card(weights: Path, sha256: str) -> WeightsCard | None:
    """The card beside a weights file; None if there is none, or a JSON file of something else.

    Raises:
        DataError: a card that is damaged, of a newer fedstill, or of another file than that with ``sha256``.
    """
    path = card_path(weights)
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({str(error)[:80]}): remove it and import the weights again"
        ) from None
    if not isinstance(plain, dict) or OURS not in plain:
        return None
    try:
        card = _card(plain)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: {str(error)[:200]}: import the weights again") from None
    if card.sha256 != sha256:
        raise DataError(f"{path}: describes another file than {weights.name}: import the weights again")
    return card


def _card(plain: dict[str, Any]) -> WeightsCard:
    own = plain[OURS]
    if own["format"] != FORMAT:
        raise ValueError(f"is of format {own['format']!r}, not {FORMAT}")
    asked = dict(plain["pretrained_cfg"])
    licence = str(asked.pop("license"))
    typed = {name: own[name] for name in ("layer_norm_eps", "multi_label", "sha256", "origin")}
    card = from_plain(
        _Plain, {"architecture": plain["architecture"], "class_names": plain["label_names"], **typed}
    )
    return replace(
        WeightsCard(card.architecture, plain["model_args"], card.class_names, from_plain(Preprocess, asked)),
        layer_norm_eps=card.layer_norm_eps,
        multi_label=card.multi_label,
        sha256=card.sha256,
        licence=licence,
        origin=card.origin,
    )


@dataclass(frozen=True)
class _Plain:
    """The fields whose types a file may get wrong."""

    architecture: str
    class_names: tuple[str, ...]
    layer_norm_eps: float | None
    multi_label: bool
    sha256: str
    origin: dict[str, str]


def _possible(name: str, value: object) -> bool:
    if name in WHOLE_NUMBERS:
        least = 0 if name == "reg_tokens" else 1
        return type(value) is int and least <= value <= WHOLE_NUMBERS[name]
    if name in SWITCHES:
        return isinstance(value, bool)
    if name in OTHERS:
        return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value <= OTHERS[name]
    return value in CHOICES.get(name, ())
