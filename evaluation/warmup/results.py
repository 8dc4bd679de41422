"""The records of ``fedstill warmup-study``, written and read back; without torch, which the tables do not need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.evaluation.results import ResultsError
from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess

STUDY_FILE = "warmup.json"
FORMAT = 1

SYSTEMS = {
    "vanilla": "OTAS (vanilla)",
    "maxprune": "Maxprune",
    "prodigy": "Prodigy",
    "printed": "Prodigy, Algorithm 5 as printed",
    "soup": "Prodigy + soups",
    "coverage": "Coverage planner",
    "exhaustive": "Exhaustive",
}
"""Name -> label, in the order of the tables."""

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class WarmupSettings:
    """The size of the study.

    Attributes:
        train_images, profiling_images, test_images: per task.
        reductions: allowed ones (the thesis' R); middle: the planner's r_mid; models: its budget.
        grid: reductions that Exhaustive fine-tunes at, and at which accuracy is measured; between them values lie on
            straight lines. seeds: of images, order and loads, 0 and up.
        serving_seconds: of the simulated loads.
        preprocess: of all images.
    """

    tasks: tuple[str, ...]
    train_images: int
    profiling_images: int
    test_images: int
    epochs: int
    batch_size: int
    learning_rate: float
    reductions: tuple[int, ...]
    middle: int
    models: int
    grid: tuple[int, ...]
    seeds: int
    serving_seconds: float
    preprocess: Preprocess = PLAIN


@dataclass(frozen=True, slots=True)
class BatchTime:
    """A batch of n takes fixed_seconds + n * per_query_seconds."""

    fixed_seconds: float
    per_query_seconds: float


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A fine-tuned model: seconds in training steps, accuracy on the profiling images by epoch, bytes on disk."""

    reduction: int
    seconds: float
    accuracies: tuple[float, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class SystemRow:
    """A system: its models, its recipe per grid reduction, and right answers on the test images as digits.

    profiled: accuracy of that choice on the profiling images, which a server would plan with.
    """

    system: str
    models: tuple[int, ...]
    recipes: dict[str, str]
    right: dict[str, str]
    profiled: dict[str, float]

    def accuracy(self, reduction: int) -> float:
        digits = self.right[str(reduction)]
        return digits.count("1") / len(digits)


@dataclass(frozen=True, slots=True)
class SoupTime:
    """Medians in seconds: making a soup of two models in memory, and one batch of ``batch`` at ``reduction``."""

    soup_seconds: float
    batch: int
    reduction: int
    forward_seconds: float


@dataclass(frozen=True, slots=True)
class ServedRow:
    """One system on one load in virtual time.

    goodput: queries right in time per minute. in_time: share answered in time, right or wrong. latency_ms:
    percentiles by name of the answered queries, from arrival to answer. within: share of all queries that were
    answered within each tenth of the objective, up to twice of it.
    """

    policy: str
    trace: str
    queries: int
    goodput: float
    in_time: float
    latency_ms: dict[str, float]
    within: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One task and seed. matrix: profiling accuracy, fine-tuned at -> served at. blends: Table 4.1, test accuracy by
    recipe. chosen: the planners' choices, in their order. served: computed from the others on reading, so a file of one
    run has none."""

    task: str
    seed: int
    classes: int
    head_accuracy: float
    models: tuple[ModelRow, ...]
    matrix: dict[str, dict[str, float]]
    chosen: dict[str, tuple[int, ...]]
    systems: tuple[SystemRow, ...]
    blends: dict[str, float]
    served: tuple[ServedRow, ...]

    def seconds(self, models: tuple[int, ...]) -> float:
        """Training seconds of some of the models."""
        return sum(row.seconds for row in self.models if row.reduction in models)

    def system(self, name: str) -> SystemRow:
        """By name. Raises ResultsError if it was not run."""
        for row in self.systems:
            if row.system == name:
                return row
        raise ResultsError(f"this study holds no {name}: run fedstill warmup-study again")


@dataclass(frozen=True, slots=True)
class WarmupStudy:
    """All measurements, and the machine. times: by reduction. soups: averages made on demand. objective: of the
    simulated loads, seconds."""

    architecture: str
    variant: str
    settings: WarmupSettings
    times: dict[str, BatchTime]
    objective: float
    runs: tuple[TaskRun, ...]
    soups: tuple[SoupTime, ...]
    date: str
    hardware: str
    threads: int
    versions: dict[str, str]
    git: str
    minutes: float

    def of_task(self, task: str) -> tuple[TaskRun, ...]:
        return tuple(run for run in self.runs if run.task == task)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.task for run in self.runs))


def write_plain(path: Path, value: object) -> Path:
    """A dataclass as JSON."""
    return replace_text(path, json.dumps({"format": FORMAT, **to_plain(value)}, indent=1))


def read_plain(kind: type[Kind], path: Path) -> Kind:
    """Read the file of ``write_plain``. Raises ResultsError, one line, if there is none."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(
            f"{path}: no such file; make one with: fedstill warmup-study --out {path.parent}"
        ) from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: is not readable ({error})") from error
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise ResultsError(f"{path}: is of another format: measure again with: fedstill warmup-study")
    try:
        return from_plain(kind, plain)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from error
