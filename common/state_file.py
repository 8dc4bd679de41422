"""Training state that can be continued: tensors and plain numbers in one safetensors file; never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedstill.common.atomic_files import replacing

OPTIMISER = "optimiser."


def save_state(path: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Write by rename: a file that is cut short is never read. ``numbers``: for JSON, kept in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as part:
        safetensors.torch.save_file(ready, part, metadata={"numbers": json.dumps(numbers)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers. Raises ValueError if the file is missing, damaged, or of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["numbers"])
            return {name: file.get_tensor(name) for name in file.keys()}, numbers  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no usable training state ({error})") from error


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def optimiser_tensors(states: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A torch optimiser's ``state`` as flat, named tensors."""
    return {
        f"{OPTIMISER}{index}.{name}": value
        for index, values in states.items()
        for name, value in values.items()
    }


def optimiser_state(tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """A torch optimiser's state dict, of the tensors that :func:`optimiser_tensors` made and the parameter groups."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in part(tensors, OPTIMISER).items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = value
    for group in groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])  # JSON made a list of them
    return {"state": states, "param_groups": groups}
