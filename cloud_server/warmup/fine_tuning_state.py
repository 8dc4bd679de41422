"""A fine-tuning in the middle, on disk: one safetensors file per epoch's end, numbers as JSON in its header.

Loading it continues to the very same weights as if nothing had happened. Never pickle.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedstill.cloud_server.training_state import optimiser_states, optimiser_tensors
from fedstill.datasets.clip import DataError

NET, BEST, RANDOMNESS = "net.", "best.", "generator"


@dataclass
class Training:
    """What changes while a network is fine-tuned.

    accuracies: on the profiling images, before the first epoch and after each. best: weights of the best of them.
    seconds: spent in training steps.
    """

    net: nn.Module
    optimiser: Optimizer
    decay: LRScheduler
    generator: Generator
    accuracies: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    def keep_best(self) -> None:
        """Remember the weights as they are now."""
        self.best = {name: value.detach().clone() for name, value in self.net.state_dict().items()}


def save_training(path: Path, training: Training) -> None:
    """Write by rename: a file that is cut short is never read."""
    optimiser = training.optimiser.state_dict()
    tensors = {NET + name: value for name, value in training.net.state_dict().items()}
    tensors |= {BEST + name: value for name, value in training.best.items()}
    tensors |= optimiser_tensors(optimiser["state"])
    tensors[RANDOMNESS] = training.generator.get_state()
    numbers = {
        "groups": optimiser["param_groups"],
        "decay": training.decay.state_dict(),
        "accuracies": training.accuracies,
        "seconds": training.seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(ready, temporary, metadata={"numbers": json.dumps(numbers)})
    temporary.replace(path)


def load_training(path: Path, training: Training) -> None:
    """Put the saved state into a training that was begun with the same settings.

    Raises:
        DataError: the file is damaged, or of another network; removing it starts this model again.
    """
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["numbers"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        training.net.load_state_dict(_part(tensors, NET))
        states = optimiser_states(tensors)
        training.optimiser.load_state_dict({"state": states, "param_groups": numbers["groups"]})
        training.decay.load_state_dict(numbers["decay"])
        training.generator.set_state(tensors[RANDOMNESS])
        training.accuracies = [float(value) for value in numbers["accuracies"]]
        training.seconds = float(numbers["seconds"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise DataError(
            f"{path}: no usable training state ({reason}): remove it to start this model again"
        ) from error
    for group in training.optimiser.param_groups:
        group["betas"] = tuple(group["betas"])  # JSON made a list of them
    training.best = _part(tensors, BEST)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
