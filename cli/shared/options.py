"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedstill.common.errors import ConfigError

RegistryFolder = Annotated[Path, typer.Option("--registry", help="Folder of the task registry.")]
Database = Annotated[
    str,
    typer.Option(
        "--database",
        metavar="URL",
        help="Of the registry's database, if not in its folder: sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME "
        "for several machines; the folder must be one that all of them see.",
    ),
]
Weights = Annotated[str, typer.Option(help="timm ViT weights, safetensors; looked up like dataset paths.")]
Architecture = Annotated[
    str | None,
    typer.Option(
        help="timm model name (default: of imported weights, their card's; else from the file's name)."
    ),
]
PreprocessChanges = Annotated[
    str,
    typer.Option(
        "--preprocess",
        metavar="KEY=VALUE,...",
        help="How the weights expect pictures, where timm says otherwise: any of mean=0.485/0.456/0.406, "
        "std=0.229/0.224/0.225, interpolation=bicubic, crop_pct=0.9, crop_mode=center.",
    ),
]


class BackendChoice(StrEnum):
    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"


Backend = Annotated[
    BackendChoice,
    typer.Option(help="What runs the network; auto: the faster one, openvino needs the extra of that name."),
]
AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="A manifest's paths may lead out of its folder.")
]


def preprocess_changes(text: str) -> dict[str, Any]:
    """Of ``--preprocess``, as plain values. Raises ConfigError for another form."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in PREPROCESS_VALUES or key in found or not value:
            raise ConfigError(
                f"--preprocess {part!r}: write KEY=VALUE with commas, each once; keys: {', '.join(PREPROCESS_VALUES)}"
            )
        try:
            found[key] = PREPROCESS_VALUES[key](value)
        except ValueError:
            raise ConfigError(f"--preprocess {part!r}: needs numbers, such as crop_pct=0.9") from None
    return found


def _channels(text: str) -> tuple[float, ...]:
    """One number for all channels, or three with slashes."""
    values = tuple(float(part) for part in text.split("/"))
    return values * 3 if len(values) == 1 else values


PREPROCESS_VALUES: dict[str, Callable[[str], Any]] = {
    "mean": _channels, "std": _channels, "interpolation": str, "crop_pct": float, "crop_mode": str,
}  # fmt: skip

DEFAULT_REGISTRY = Path("runs") / "tasks"
