"""The files of a source: the weights, and what lies beside them and describes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.cloud_server.serving.imports.read_state import ImportFault

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In a folder as transformers and timm write it, the better one first."""
LARGEST_TEXT = 16 * 2**20
LICENCE = re.compile(r"^license:[ \t]*['\"]?([\w.+-]+)['\"]?[ \t]*$", re.MULTILINE)
"""In the head of a model card, ``README.md``."""


@dataclass(frozen=True)
class SourceFiles:
    """config, processor: the JSON objects, None if the files are not there. licence: empty if it is not said."""

    weights: Path
    config: Mapping[str, Any] | None
    processor: Mapping[str, Any] | None
    licence: str


def source_files(source: Path) -> SourceFiles:
    """Of a folder, or of a weights file. Raises ImportFault for a folder without weights and for a damaged file."""
    weights = _weights_in(source) if source.is_dir() else source
    folder = weights.parent
    configs = [weights.with_suffix(".json"), folder / "config.json"]
    config = next((found for path in configs if (found := _read_object(path)) is not None), None)
    return SourceFiles(weights, config, _read_object(folder / "preprocessor_config.json"), _licence(folder))


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).exists():
            return folder / name
        if (folder / f"{name}.index.json").exists():
            raise ImportFault(
                f"{folder}: {name} is in several parts: save it again with a larger max_shard_size"
            )
    raise ImportFault(f"{folder}: has no {' or '.join(WEIGHTS)}: name the weights file itself")


def _read_object(path: Path) -> Mapping[str, Any] | None:
    try:
        if not path.exists():
            return None
        if path.stat().st_size > LARGEST_TEXT:
            raise ImportFault(f"{path}: is too large for a description")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ImportFault):
            raise
        raise ImportFault(f"{path}: is not a readable JSON file ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise ImportFault(f"{path}: needs a JSON object")
    return found


def _licence(folder: Path) -> str:
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:LARGEST_TEXT]
    except OSError:
        return ""
    head = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = LICENCE.search(head)
    return found[1] if found else ""
