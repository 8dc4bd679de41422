"""The files of a source: the weights, and what lies beside them and describes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.cloud_server.serving.engine.weights_card import OURS, card_path
from fedstill.cloud_server.serving.imports.read_state import ImportFault

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In a folder as transformers and timm write it, the better one first."""
SAYING = ("architecture", "model_type")
"""A ``NAME.json`` beside ``NAME.pth`` with one of these is its configuration; others are logs, results and so on."""
LARGEST_TEXT = 16 * 2**20
LICENCE = re.compile(r"^license:[ \t]*['\"]?([\w.+-]+)['\"]?[ \t]*$", re.MULTILINE)
"""In the head of a model card, ``README.md``."""


@dataclass(frozen=True)
class SourceFiles:
    """What is there.

    Attributes:
        config, processor: JSON objects of other programs, None if there are none.
        card: JSON object of an earlier import beside the weights, of these or of others; None if there is none.
        licence: empty if it is not said.
    """

    weights: Path
    config: Mapping[str, Any] | None
    processor: Mapping[str, Any] | None
    licence: str
    card: Mapping[str, Any] | None = None


def source_files(source: Path) -> SourceFiles:
    """Of a folder, or of a weights file. Raises ImportFault for a folder without weights and for a damaged file."""
    weights = _weights_in(source) if source.is_dir() else source
    if weights.exists() and not weights.is_file():
        raise ImportFault(f"{weights}: is not a regular file")
    folder = weights.parent
    beside, config = _read_json(card_path(weights)), _read_object(folder / "config.json")
    card = None
    if isinstance(beside, dict) and OURS in beside:
        card = beside
    elif isinstance(beside, dict) and not beside.keys().isdisjoint(SAYING):
        config = beside
    if config is not None and OURS in config:
        config = None
    processor = _read_object(folder / "preprocessor_config.json")
    return SourceFiles(weights, config, processor, _licence(folder), card)


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
    found = _read_json(path)
    if found is not None and not isinstance(found, dict):
        raise ImportFault(f"{path}: needs a JSON object")
    return found


def _read_json(path: Path) -> object:
    """None if there is no such file."""
    try:
        if not path.exists():
            return None
        if not path.is_file() or path.stat().st_size > LARGEST_TEXT:
            raise ImportFault(f"{path}: is too large for a description, or no regular file")
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ImportFault):
            raise
        raise ImportFault(f"{path}: is not a readable JSON file ({str(error)[:80]})") from None
    return found


def _licence(folder: Path) -> str:
    try:
        page = folder / "README.md"
        if not page.is_file() or page.stat().st_size > LARGEST_TEXT:
            return ""
        text = page.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    head = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = LICENCE.search(head)
    return found[1] if found else ""
