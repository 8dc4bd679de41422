"""A student in the middle of Algorithm 7, on disk: weights, optimiser, schedule and randomness after an outer epoch.

Loading it continues to the very same student as if nothing had happened. One safetensors file, the numbers that are
no tensors as JSON in its header; never pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedstill.cloud_server.distillation import Distiller

WEIGHT, STATE, RANDOMNESS = "student.", "optimiser.", "generator"


@dataclass(frozen=True)
class Progress:
    """What continues over outer epochs: the distiller, and the randomness of selection."""

    distiller: Distiller
    rng: np.random.Generator


def save_progress(path: Path, progress: Progress) -> None:
    """Write by rename: a file that is cut short is never read."""
    distiller = progress.distiller
    optimiser = distiller.optimiser.state_dict()
    tensors = {WEIGHT + name: value for name, value in distiller.student.state_dict().items()}
    tensors |= optimiser_tensors(optimiser["state"])
    tensors[RANDOMNESS] = distiller.generator.get_state()
    numbers = {
        "groups": optimiser["param_groups"],
        "schedule": distiller.schedule.state_dict(),
        "rng": progress.rng.bit_generator.state,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(ready, temporary, metadata={"numbers": json.dumps(numbers)})
    temporary.replace(path)


def load_progress(path: Path, progress: Progress) -> None:
    """Put the saved state into a distiller that was made with the same settings.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    distiller = progress.distiller
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["numbers"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no usable training state ({error})") from error
    weights = {name.removeprefix(WEIGHT): value for name, value in tensors.items() if name.startswith(WEIGHT)}
    distiller.student.load_state_dict(weights)
    distiller.optimiser.load_state_dict(
        {"state": optimiser_states(tensors), "param_groups": numbers["groups"]}
    )
    for group in distiller.optimiser.param_groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    distiller.schedule.load_state_dict(numbers["schedule"])
    distiller.generator.set_state(tensors[RANDOMNESS])
    progress.rng.bit_generator.state = numbers["rng"]


def optimiser_tensors(states: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A torch optimiser's ``state`` as flat, named tensors."""
    return {
        f"{STATE}{index}.{name}": value for index, values in states.items() for name, value in values.items()
    }


def optimiser_states(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """A torch optimiser's ``state`` out of the flat tensors that :func:`optimiser_tensors` made."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(STATE):
            index, _, key = name.removeprefix(STATE).partition(".")
            states.setdefault(int(index), {})[key] = value
    return states
