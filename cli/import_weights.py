"""``fedstill import``: a Vision Transformer of transformers or timm becomes weights to serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.shared.console import console, one_line_errors
from fedstill.cli.shared.options import PreprocessChanges, preprocess_changes


def import_weights(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder that transformers or timm saved, or a weights file: safetensors, .bin, .pth, .pt."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="File for the weights, NAME.safetensors; NAME.json beside it describes them.")
    ],
    architecture: Annotated[
        str | None, typer.Option(help="timm model name, if the source does not say it.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of pictures in pixels; the position embedding is resized. Default: the weights' own.",
            min=1,
        ),
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Names of the head's classes: with commas, or a file with one per line.")
    ] = "",
    preprocess: PreprocessChanges = "",
    head: Annotated[bool, typer.Option("--head/--no-head", help="Take the head, or the trunk alone.")] = True,
) -> None:
    """Turn a trained Vision Transformer into weights that serve and tasks add read, with its own head."""
    with one_line_errors():
        from fedstill.cloud_server.serving.imports.import_weights import ImportOptions, import_weights

        names = _class_names(classes)
        options = ImportOptions(architecture, image_size, names, preprocess_changes(preprocess), head)
        made = import_weights(source, out, options)
    card = made.card
    lines = [
        f"{out}: {made.image_size} pixels, {len(card.class_names) or 'no'} classes"
        + (", each true or not by itself" if card.multi_label else "")
        + f", licence: {card.licence or 'not said'}",
        *made.remarks,
    ]
    if card.class_names:
        lines.append(f"next: fedstill tasks add NAME --own-head --weights {out} --images FOLDER")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _class_names(text: str) -> list[str]:
    """Raises ConfigError for a file that cannot be read."""
    from fedstill.common.errors import ConfigError

    if not text:
        return []
    try:
        listed = "," in text or not Path(text).is_file()
        lines = text.split(",") if listed else Path(text).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes {text[:80]}: cannot be read ({error})") from None
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise ConfigError(f"--classes {text[:80]}: names no class")
    return names
