"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RegistryFolder = Annotated[Path, typer.Option("--registry", help="Folder of the task registry.")]
Weights = Annotated[str, typer.Option(help="timm ViT weights, safetensors; looked up like dataset paths.")]
Architecture = Annotated[
    str | None, typer.Option(help="timm model name (default: from the beginning of the weights file's name).")
]
AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="A manifest's paths may lead out of its folder.")
]
DEFAULT_REGISTRY = Path("runs") / "tasks"
