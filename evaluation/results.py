"""The results of a run: ``results.json`` (every number) and ``clips.json`` (which clips were right).

The launcher writes a run directory through these records, and reports, plots and ``fedstill reproduce`` read
it back through them, so only this file defines the layout. A record refuses impossible values (an unknown arm, 12 of 10
correct) when it is made, and every file is read back before it is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedstill.cloud_server.distillation.arm_names import ARMS, REFERENCES, SCENARIOS
from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import from_plain, plain_value
from fedstill.common.errors import UserError

Parsed = TypeVar("Parsed")

FORMAT = 1
RESULTS_FILE = "results.json"
CLIPS_FILE = "clips.json"

SWEEPS: Mapping[str, str] = {
    "cluster_samples": "samples per cluster",
    "uploaded_samples": "uploaded samples",
    "compression": "compression ratio",
}

_ALLOWED: Mapping[str, Sequence[str]] = {
    "arm": tuple(ARMS),
    "scenario": tuple(SCENARIOS),
    "sweep": tuple(SWEEPS),
    "mode": ("clean", "faithful"),
    "scope": ("public_holdout", "client"),
    "precision": ("fp32", "int8"),
    "modality": ("visual", "audio"),
}


class ResultsError(UserError):
    """A run directory, or a request about one, cannot be used; one line that says what to do."""


class _Checked:
    """Base of all records: names come from the lists above and no more clips are right than there are."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            value = getattr(self, name, allowed[0])
            if value not in allowed:
                raise ResultsError(f"unknown {name} {value!r} (known: {', '.join(allowed)})")
        correct, total = getattr(self, "correct", 0), getattr(self, "total", 1)
        if isinstance(correct, int) and not (0 <= correct <= total and total > 0):
            raise ResultsError(f"{correct} correct of {total} clips cannot be")


@dataclass(frozen=True, slots=True)
class ClientClasses(_Checked):
    """Which classes one client holds, as clips per class name."""

    client: int
    classes: dict[str, int]


@dataclass(frozen=True, slots=True)
class TeacherRow(_Checked):
    """Teacher accuracy of one seed, on held-out public clips (client None) or on one client's clips."""

    seed: int
    scope: str
    client: int | None
    correct: int
    total: int


@dataclass(frozen=True, slots=True)
class PretrainedRow(_Checked):
    """Weights that somebody else trained and the teacher's encoder of one modality started from (or stayed at)."""

    modality: str
    model: str
    sha256: str
    licence: str
    frozen: bool


@dataclass(frozen=True, slots=True)
class AccuracyRow(_Checked):
    """One cell of Tables 5.2 / 5.4 for one seed, in clips."""

    scenario: str
    arm: str
    client: int
    seed: int
    correct: int
    total: int


@dataclass(frozen=True, slots=True)
class TrafficRow(_Checked):
    """Bytes that one outer round moved: up from the client, down to it."""

    scenario: str
    arm: str
    client: int
    seed: int
    round: int
    up_bytes: int
    down_bytes: int


@dataclass(frozen=True, slots=True)
class SelectionRow(_Checked):
    """How many public clips of each class one outer round selected, in the order of ``Results.class_names``."""

    scenario: str
    arm: str
    client: int
    seed: int
    round: int
    class_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShareRow(_Checked):
    """A device that had more prototypes than public clips could be chosen in an outer round, so that each prototype
    took a share of a clip; the round with most of them."""

    scenario: str
    arm: str
    client: int
    seed: int
    prototypes: int
    clips: int


@dataclass(frozen=True, slots=True)
class LossRow(_Checked):
    """Mean distillation loss of one epoch; None if it was not finite (the training diverged)."""

    scenario: str
    arm: str
    client: int
    seed: int
    epoch: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class SweepRow(_Checked):
    """Accuracy at one setting of a swept quantity (Table 5.3, Figs 5.12-5.13); bytes only for compression."""

    sweep: str
    value: float
    precision: str
    bytes_per_clip: int | None
    scenario: str
    client: int
    seed: int
    correct: int
    total: int


@dataclass(frozen=True, slots=True)
class FailureRow(_Checked):
    """An outer round that did not finish, and why."""

    scenario: str
    arm: str
    client: int
    seed: int
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class DecisionRow(_Checked):
    """Whether a device's student used its class mix, and why or why not; gain: what it was expected to add."""

    scenario: str
    arm: str
    client: int
    seed: int
    supported: bool
    reason: str
    gain: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A student that a device might have got: its estimated gain over the generic one and that gain's standard error,
    as fractions."""

    name: str
    gain: float
    error: float


@dataclass(frozen=True, slots=True)
class ChoiceRow(_Checked):
    """Which candidate became a device's student, and how accurate the cloud expects it to be, without labels.

    estimate, low, high: accuracy and its 90 % interval, from 0 to 1; None if nothing could be estimated.
    cohort: of the devices that share the student; empty if the device has its own, or the generic one.
    """

    scenario: str
    arm: str
    client: int
    seed: int
    chosen: str
    reason: str
    estimate: float | None
    low: float | None
    high: float | None
    candidates: tuple[Candidate, ...]
    cohort: str = ""


@dataclass(frozen=True, slots=True)
class ClipRow(_Checked):
    """Per-clip correctness of one client and seed: one "0"/"1" per clip and arm, in the order of clip_ids.

    Arms are those of the run, and the published methods of ``REFERENCES``, if they were evaluated on the same clips.

    groups, speakers: the recording and the speaker of each clip. Empty in files that an older fedstill wrote: then each
    clip is its own recording, and its speaker is unknown. Labels are not here.
    """

    scenario: str
    client: int
    seed: int
    clip_ids: tuple[str, ...]
    correct: dict[str, str]
    groups: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)  # bare super() breaks: slots=True rebuilds the class
        for name, given in (("groups", self.groups), ("speakers", self.speakers)):
            if given and len(given) != len(self.clip_ids):
                raise ResultsError(f"{name} needs one per clip, {len(self.clip_ids)}, found {len(given)}")
        for arm, bits in self.correct.items():
            if arm not in ARMS and arm not in REFERENCES:
                raise ResultsError(f"unknown arm {arm!r} (known: {', '.join((*ARMS, *REFERENCES))})")
            if len(bits) != len(self.clip_ids) or bits.strip("01"):
                raise ResultsError(f"arm {arm} needs {len(self.clip_ids)} digits 0 or 1, found {bits[:20]!r}")


@dataclass(frozen=True, slots=True)
class _ClipTable:
    """``clips.json`` as a whole."""

    clips: tuple[ClipRow, ...]


@dataclass(frozen=True, slots=True)
class Results(_Checked):
    """Everything in ``results.json``; a run may hold only some arms, scenarios and clients.

    captures: per client how a simulation makes it record, in words; empty for as the public clips, or for all if the
    run simulates no such thing.
    """

    experiment: str
    dataset: str
    synthetic: bool
    mode: str
    class_names: tuple[str, ...]
    clients: tuple[ClientClasses, ...]
    seeds: tuple[int, ...]
    date: str
    hardware: str
    versions: dict[str, str]
    git: str
    config: dict[str, Any]
    seconds: dict[str, float]
    peak_memory_mb: float
    parameters: dict[str, int]
    teacher: tuple[TeacherRow, ...] = ()
    rows: tuple[AccuracyRow, ...] = ()
    traffic: tuple[TrafficRow, ...] = ()
    selection: tuple[SelectionRow, ...] = ()
    losses: tuple[LossRow, ...] = ()
    sweeps: tuple[SweepRow, ...] = ()
    failures: tuple[FailureRow, ...] = ()
    decisions: tuple[DecisionRow, ...] = ()
    choices: tuple[ChoiceRow, ...] = ()
    pretrained: tuple[PretrainedRow, ...] = ()
    captures: tuple[str, ...] = ()
    shares: tuple[ShareRow, ...] = ()

    def scenarios(self) -> tuple[str, ...]:
        """Scenarios with accuracy rows, in table order."""
        return tuple(name for name in SCENARIOS if any(row.scenario == name for row in self.rows))

    def arms(self) -> tuple[str, ...]:
        """Arms with accuracy rows, in table order."""
        return tuple(name for name in ARMS if any(row.arm == name for row in self.rows))


def write_results(run_dir: Path, results: Results) -> Path:
    """Write RUN/results.json (atomic rename; makes the folder); a loss that is not finite is kept as null."""
    document = {"format": FORMAT} | asdict(results)
    for row in document["losses"]:
        if row["loss"] is not None and not math.isfinite(row["loss"]):
            row["loss"] = None
    text = json.dumps(document, allow_nan=False, default=plain_value)
    _results_from(json.loads(text))
    return replace_text(run_dir / RESULTS_FILE, text)


def write_clips(run_dir: Path, clips: Sequence[ClipRow]) -> Path:
    """Write RUN/clips.json (atomic rename; makes the folder)."""
    text = json.dumps([asdict(row) for row in clips], allow_nan=False, default=plain_value)
    _clips_from(json.loads(text))
    return replace_text(run_dir / CLIPS_FILE, text)


def read_results(run_dir: Path) -> Results:
    """Read RUN/results.json; raises ResultsError if it is missing, damaged or of another format."""
    return _read(run_dir / RESULTS_FILE, _results_from)


def read_clips(run_dir: Path) -> tuple[ClipRow, ...]:
    """Read RUN/clips.json; raises ResultsError if it is missing or damaged."""
    return _read(run_dir / CLIPS_FILE, _clips_from)


def check_agreement(results: Results, clips: Sequence[ClipRow]) -> None:
    """Raise ResultsError if clips.json and the accuracy rows count differently."""
    counted = {
        (row.scenario, arm, row.client, row.seed): (bits.count("1"), len(bits))
        for row in clips
        for arm, bits in row.correct.items()
    }
    for row in results.rows:
        right, total = counted.get((row.scenario, row.arm, row.client, row.seed), (row.correct, row.total))
        if (right, total) != (row.correct, row.total):
            raise ResultsError(
                f"{RESULTS_FILE} has {row.correct}/{row.total}, {CLIPS_FILE} {right}/{total} for {row.arm}, "
                f"client {row.client}, seed {row.seed}: two runs are mixed here, run the experiment again"
            )


def _results_from(document: object) -> Results:
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    body = {
        "decisions": [],
        "choices": [],
        "pretrained": [],
        "captures": [],
        "shares": [],
        **document,
    }  # older files have none
    found = body.pop("format", None)
    if found != FORMAT:
        raise ValueError(f"format {found!r}, this fedstill reads {FORMAT}")
    if isinstance(body["choices"], list):  # from before there were cohorts
        body["choices"] = [{"cohort": ""} | row if isinstance(row, dict) else row for row in body["choices"]]
    results = from_plain(Results, body, complete=True)
    if results.captures and len(results.captures) != len(results.clients):
        raise ValueError(f"captures: {len(results.captures)} for {len(results.clients)} clients")
    for row in results.selection:
        if len(row.class_counts) != len(results.class_names):
            raise ValueError(
                f"selection: {len(row.class_counts)} counts for {len(results.class_names)} classes"
            )
    return results


def _clips_from(document: object) -> tuple[ClipRow, ...]:
    if isinstance(document, list):  # files from before clips had recordings and speakers
        document = [
            {"groups": [], "speakers": []} | row if isinstance(row, dict) else row for row in document
        ]
    return from_plain(_ClipTable, {"clips": document}, complete=True).clips


def _read(path: Path, parse: Callable[[object], Parsed]) -> Parsed:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ResultsError(
            f"no {path.name} in {path.parent}: give the folder of a finished run (see `fedstill simulate`)"
        ) from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ResultsError(f"{path} is damaged ({reason}): run the experiment again") from error
