"""A student in the middle of Algorithm 7, on disk: weights, optimiser, schedule and randomness after an outer round.

Training that continues from it gives the same student as an undisturbed run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedstill.cloud_server.distillation.distiller import Distiller
from fedstill.common.state_file import load_state, optimiser_state, optimiser_tensors, part, save_state

WEIGHT, RANDOMNESS = "student.", "generator"


@dataclass(frozen=True)
class TrainingState:
    """The state that continues over outer rounds: the distiller, and the randomness of selection."""

    distiller: Distiller
    rng: np.random.Generator


def save_training(path: Path, training: TrainingState) -> None:
    """Write everything that :func:`load_training` needs into one file."""
    distiller = training.distiller
    optimiser = distiller.optimiser.state_dict()
    tensors = {WEIGHT + name: value for name, value in distiller.student.state_dict().items()}
    tensors |= optimiser_tensors(optimiser["state"])
    tensors[RANDOMNESS] = distiller.generator.get_state()
    numbers = {
        "groups": optimiser["param_groups"],
        "schedule": distiller.schedule.state_dict(),
        "rng": training.rng.bit_generator.state,
    }
    save_state(path, tensors, numbers)


def load_training(path: Path, training: TrainingState) -> None:
    """Load the saved state into a distiller that was made with the same settings.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    distiller = training.distiller
    tensors, numbers = load_state(path)
    distiller.student.load_state_dict(part(tensors, WEIGHT))
    distiller.optimiser.load_state_dict(optimiser_state(tensors, numbers["groups"]))
    distiller.schedule.load_state_dict(numbers["schedule"])
    distiller.generator.set_state(tensors[RANDOMNESS])
    training.rng.bit_generator.state = numbers["rng"]
