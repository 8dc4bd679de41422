"""The robustness study as one small file of raw counts: per device, seed and arm, the clips right of each recording.

Every table and picture of the study comes from it, so it is committed, and nobody has to train anything to count again.
Devices that were tested on the same recordings share one list of them. Counts are digits of base 36, one for each
recording, which keeps all cells of several data sets below two megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.evaluation.results import Candidate, ResultsError

STUDY_FILE = "results.json"
KIND = "robustness"
FORMAT = 1
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

Counts = npt.NDArray[np.int64]
Unit = Literal["speaker", "recording"]

FEWEST_SPEAKERS = 12
"""With n speakers no sign-flip test gets below 2 / 2^n. With 12 it still can be significant among some 40 cells."""


@dataclass(frozen=True, slots=True)
class ClipSet:
    """On what a device was tested: numbers of recordings, and how many clips of each, as ``digits``."""

    recordings: tuple[int, ...]
    clips: str


@dataclass(frozen=True, slots=True)
class Choice:
    """As in ``ChoiceRow``, of the arm ``fedstill``."""

    chosen: str
    reason: str
    estimate: float | None
    low: float | None
    high: float | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class DeviceRun:
    """One device with one seed.

    Attributes:
        fold, client: which device.
        scenario, condition, severity, classes, query: its cell, as in ``devices.json``.
        test: number of its list of recordings.
        right: by arm, the clips right of each recording, as ``digits``.
        up_bytes: by arm, what the device uploaded, as far as it is known.
        largest_bytes: by arm, what the largest of its answers took before its student was tested, which needs
            labels; none of an arm that asks for nothing.
    """

    fold: int
    client: int
    seed: int
    scenario: str
    condition: str
    severity: int
    classes: str
    query: int
    test: int
    right: dict[str, str]
    up_bytes: dict[str, int]
    largest_bytes: dict[str, int]
    choice: Choice | None


@dataclass(frozen=True, slots=True)
class DataSet:
    """All folds and seeds of one experiment.

    Attributes:
        experiment, dataset, synthetic, class_names, parameters: as in a run's results.
        family: of the capture conditions, ``development`` or ``test``.
        folds: those that were run, of ``fold_count``.
        recordings: (speaker, name) of every recording that was tested.
        git, hardware: of the runs, each once.
        seconds: by part of the work.
        left_out: in words.
    """

    experiment: str
    dataset: str
    synthetic: bool
    class_names: tuple[str, ...]
    parameters: dict[str, int]
    family: str
    middle: int
    fold_count: int
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    recordings: tuple[tuple[str, str], ...]
    tests: tuple[ClipSet, ...]
    devices: tuple[DeviceRun, ...]
    git: tuple[str, ...]
    hardware: tuple[str, ...]
    seconds: dict[str, float]
    left_out: tuple[str, ...]

    @property
    def unit(self) -> Unit:
        """What statistics take as independent."""
        names = {speaker for speaker, _ in self.recordings}
        return "speaker" if all(names) and len(names) >= FEWEST_SPEAKERS else "recording"

    def arms(self) -> set[str]:
        return {arm for device in self.devices for arm in device.right}


@dataclass(frozen=True, slots=True)
class Study:
    """The study: its data sets, and where it was run."""

    command: str
    date: str
    git: str
    cpu: str
    hardware: str
    versions: dict[str, str]
    sets: tuple[DataSet, ...]


def digits(counts: npt.NDArray[np.integer]) -> str:
    """Counts as text. Raises ResultsError for one that has no digit."""
    if counts.size and counts.max() >= len(DIGITS):
        raise ResultsError(
            f"a recording has {counts.max()} tested clips; {len(DIGITS) - 1} can be kept: set robustness.per_recording"
        )
    return "".join(DIGITS[count] for count in counts)


def folds_left_out(count: int, folds: Collection[int]) -> tuple[str, ...]:
    """A line for ``DataSet.left_out`` if some of ``count`` folds are not among ``folds``."""
    missing = sorted(set(range(count)) - set(folds))
    return (f"folds {', '.join(map(str, missing))} of {count}",) if missing else ()


@cache
def counts_of(text: str) -> Counts:
    """Counts from the text of ``digits``; int64, not to be changed."""
    found = np.array([DIGITS.index(digit) for digit in text], dtype=np.int64)
    found.flags.writeable = False
    return found


def write_study(folder: Path, study: Study) -> Path:
    """Write FOLDER/results.json."""
    document = {"format": FORMAT, "kind": KIND, **to_plain(study)}
    return replace_text(folder / STUDY_FILE, json.dumps(document, separators=(",", ":")))


def read_study(folder: Path) -> Study:
    """Read the file of ``write_study``. Raises ResultsError, one line, if there is none."""
    path = folder / STUDY_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(
            f"{path}: no such file; make one with: fedstill robustness-study --out {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: is not readable ({error})") from error
    if not isinstance(plain, dict) or (plain.pop("format", None), plain.pop("kind", None)) != (FORMAT, KIND):
        raise ResultsError(f"{path}: is no robustness study of this format: measure again")
    try:
        return from_plain(Study, plain)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from error
