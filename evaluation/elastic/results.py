"""The records of ``fedstill elastic``, written and read back; without torch, which the tables do not need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.evaluation.results import ResultsError
from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess

STUDY_FILE = "elastic_vit.json"
FORMAT = 1
PROMPTS = 4
"""Table 3.1's number of prompts; the iterative scheme trains half of them first."""


@dataclass(frozen=True, slots=True)
class StudySettings:
    """The size of the study: images per task, and how prompts are trained (no epochs: not at all).

    Attributes:
        prompt_images: training images of the prompts.
        prompt_epochs: of each of the two iterative stages; from scratch trains twice as long, so that both see the
            same images.
        rounds, timed_batches: timings per schedule and batch size.
    """

    train_images: int = 800
    val_images: int = 200
    test_images: int = 300
    prompt_images: int = 256
    prompt_epochs: int = 0
    prompt_learning_rate: float = 0.002
    rounds: int = 5
    timed_batches: tuple[int, ...] = (1, 8, 16)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """One schedule: its tokens per image, their cost, and its time on this machine."""

    label: str
    name: str
    merged: int
    tokens_left: int
    ideal_speed_up: float
    fixed_seconds: float
    per_query_seconds: float

    @property
    def images_per_second(self) -> float:
        """In batches of 8."""
        return 8 / (self.fixed_seconds + 8 * self.per_query_seconds)


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task: right answers on its test images as digits, by schedule label and by prompt scheme."""

    task: str
    classes: int
    validation_accuracy: float
    right: dict[str, str]
    prompted: dict[str, str]


@dataclass(frozen=True, slots=True)
class Study:
    """All measurements, and the machine."""

    architecture: str
    variant: str
    settings: StudySettings
    schedules: tuple[ScheduleRow, ...]
    tasks: tuple[TaskRow, ...]
    date: str
    hardware: str
    threads: int
    versions: dict[str, str]
    git: str
    preprocess: Preprocess = PLAIN


def write_study(folder: Path, study: Study) -> Path:
    """Write FOLDER/elastic_vit.json."""
    text = json.dumps({"format": FORMAT, **to_plain(study)}, indent=1)
    return replace_text(folder / STUDY_FILE, text)


def read_study(folder: Path) -> Study:
    """Read the file of ``write_study``. Raises ResultsError, one line, if there is none."""
    path = folder / STUDY_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; make one with: fedstill elastic --out {folder}") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: is not readable ({error})") from error
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise ResultsError(f"{path}: is of another format: measure again with: fedstill elastic")
    try:
        return from_plain(Study, plain)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from error
