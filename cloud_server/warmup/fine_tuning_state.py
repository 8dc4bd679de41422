"""An unfinished fine-tuning on disk: one file, written after each epoch.

Training that continues from it ends with the same weights as an undisturbed one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedstill.common.errors import DataError
from fedstill.common.state_file import load_state, optimiser_state, optimiser_tensors, part, save_state

NET, BEST, RANDOMNESS = "net.", "best.", "generator"


@dataclass
class Training:
    """The state that changes while a network is fine-tuned.

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
    """Write everything that :func:`load_training` needs into one file."""
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
    save_state(path, tensors, numbers)


def load_training(path: Path, training: Training) -> None:
    """Load the saved state into a training that was begun with the same settings.

    Raises:
        DataError: the file is damaged, or of another network; removing it starts this model again.
    """
    try:
        tensors, numbers = load_state(path)
        training.net.load_state_dict(part(tensors, NET))
        training.optimiser.load_state_dict(optimiser_state(tensors, numbers["groups"]))
        training.decay.load_state_dict(numbers["decay"])
        training.generator.set_state(tensors[RANDOMNESS])
        training.accuracies = [float(value) for value in numbers["accuracies"]]
        training.seconds = float(numbers["seconds"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip().removeprefix(f"{path}: ")
        raise DataError(f"{path}: {reason}: remove it to start this model again") from error
    training.best = part(tensors, BEST)
