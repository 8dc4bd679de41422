"""An experiment: one TOML file, typed and validated at load; an error names the wrong key.

A file holds only the differences from its mode's defaults (``modes/clean.toml``, ``modes/faithful.toml``), and ``--set
table.key=value`` changes the file's values. ``[fedstill]`` holds the differences from ``[distillation]``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from fedstill.cloud_server.distillation.arm_names import ARMS, DEFAULT_ARMS, ROBUSTNESS_ARMS, SCENARIOS
from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.distillation.settings import (
    CaptureSettings,
    CohortSettings,
    DistillationSettings,
    DownlinkSettings,
    GuardSettings,
    PrototypeSettings,
    SelectionSettings,
    StudentSettings,
    TeacherSettings,
    at_least,
)
from fedstill.common.dataclass_codec import PlainError, from_plain
from fedstill.common.errors import ConfigError
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.evaluation.results import SWEEPS
from fedstill.simulation.robustness_settings import RobustnessSettings

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DatasetSettings:
    """Where clips come from. Relative paths are looked up by ``data_path``."""

    kind: Literal["synthetic", "cremad", "ave", "manifest"] = "synthetic"
    manifest: str = ""  # manifest: the CSV
    root: str = (
        ""  # manifest: what its paths are relative to (default: its folder); cremad, ave: prepared folder
    )
    allow_outside: bool = False  # manifest: whether paths may lead out of root
    classes: tuple[str, ...] = ()  # manifest: class order; default sorted labels
    seed: int = 0  # synthetic
    class_count: int = 6  # synthetic
    public_per_class: int = 200  # synthetic
    private_per_class: int = 40  # synthetic
    difficulty: float = 1.0  # synthetic
    folds: int = 1  # parts into which all speakers are divided, sorted by name; 1: the split of the data
    fold: int = 0  # the part that is on devices; simulate --folds runs all

    def __post_init__(self) -> None:
        at_least(1, self, "folds")
        if not 0 <= self.fold < self.folds:
            raise ValueError(
                f"fold: {self.fold} is not one of 0 to {self.folds - 1}: set dataset.folds, too, or run all by --folds"
            )


@dataclass(frozen=True, slots=True)
class PartitionSettings:
    """How private clips are divided among devices."""

    kind: Literal["halves", "pathological", "dirichlet", "speaker", "robustness"] = "halves"
    clients: int = 2
    alpha: float = 0.5  # dirichlet
    classes_per_client: int = 2  # pathological
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "clients", "classes_per_client")
        if self.kind == "halves" and self.clients != 2:
            raise ValueError("kind: halves is for 2 clients; use pathological, dirichlet or speaker for more")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Which cells of the table are filled."""

    seeds: int = 1
    first_seed: int = 0
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    arms: tuple[str, ...] = DEFAULT_ARMS
    sweeps: tuple[str, ...] = ()
    sweep_seeds: int = 1
    holdout: float = 0.1  # share of public clips kept from the teacher's training, for its own accuracy
    reply_timeout: float = 300.0  # seconds for one device's reply

    def __post_init__(self) -> None:
        for key, known in (("scenarios", SCENARIOS), ("arms", ARMS), ("sweeps", SWEEPS)):
            for name in getattr(self, key):
                if name not in known:
                    raise ValueError(f"{key}: {name!r} is not one of {', '.join(known)}")
        at_least(1, self, "seeds")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout: {self.holdout} is no share from 0 up to 1")


@dataclass(frozen=True, slots=True)
class Experiment:
    """A whole experiment file."""

    name: str
    title: str = ""
    mode: Literal["clean", "faithful"] = "clean"
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    audio: AudioSpec = field(default_factory=AudioSpec)
    frames: FrameSpec = field(default_factory=FrameSpec)
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    prototypes: PrototypeSettings = field(default_factory=PrototypeSettings)
    fedstill: DistillationSettings = field(default_factory=DistillationSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    cohorts: CohortSettings = field(default_factory=CohortSettings)
    downlink: DownlinkSettings = field(default_factory=DownlinkSettings)
    compute: Compute = field(default_factory=Compute)
    run: RunSettings = field(default_factory=RunSettings)
    robustness: RobustnessSettings = field(default_factory=RobustnessSettings)

    def __post_init__(self) -> None:
        for key in ("outer_epochs", "inner_epochs"):
            if getattr(self.fedstill, key) != getattr(self.distillation, key):
                raise ValueError(
                    f"fedstill: {key} must be as in [distillation], so that all arms train equally long"
                )
        if self.partition.kind == "robustness":
            self.robustness.require_conditions()
            if self.dataset.folds > 1:
                raise ValueError(
                    "dataset: folds is for other partitions; set robustness.folds and robustness.fold"
                )
        strange = set(self.run.arms) & set(ROBUSTNESS_ARMS)
        if strange and self.partition.kind != "robustness":
            raise ValueError(f'run: arm {min(strange)!r} needs partition.kind = "robustness"')
        if self.downlink.install and self.downlink.install not in self.run.arms:
            raise ValueError(
                f"downlink: install {self.downlink.install!r} is not one of run.arms ({', '.join(self.run.arms)})"
            )


def load_experiment(name_or_path: str, overrides: Iterable[str] = ()) -> Experiment:
    """Read a shipped experiment by name or any TOML file, apply ``key=value`` overrides, validate.

    Raises:
        ConfigError: in one line, naming the file or key.
    """
    values = _read(name_or_path)
    for override in overrides:
        _apply(values, override)
    mode = values.get("mode", "clean")
    if mode not in ("clean", "faithful"):
        raise ConfigError(f"mode: {mode!r} is not one of clean, faithful")
    defaults = tomllib.loads(_shipped().joinpath("modes", f"{mode}.toml").read_text())
    try:
        merged = _merge(defaults, values)
        merged["fedstill"] = _merge(_table(merged, "distillation"), _table(merged, "fedstill"))
        return from_plain(Experiment, merged)
    except PlainError as error:
        raise ConfigError(str(error)) from error


def _table(values: Values, key: str) -> Values:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{key}: needs a table, got {str(table)[:40]!r}")
    return table


def shipped_experiments() -> list[str]:
    """Names of the experiments that come with fedstill."""
    return sorted(
        item.name.removesuffix(".toml") for item in _shipped().iterdir() if item.name.endswith(".toml")
    )


def _read(name_or_path: str) -> Values:
    shipped = _shipped().joinpath(f"{name_or_path}.toml")
    try:
        text = shipped.read_text() if shipped.is_file() else Path(name_or_path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(shipped_experiments())
        raise ConfigError(
            f"{name_or_path}: no such experiment (shipped: {known}) and no such file"
        ) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name_or_path}: not valid TOML ({error})") from error


def _apply(values: Values, override: str) -> None:
    """``table.key=value`` into nested values; the value is TOML, or else a plain string."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: needs the form table.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {table} is no table")
    values[last] = value


def _merge(defaults: Values, values: Values) -> Values:
    merged = dict(defaults)
    for key, value in values.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _shipped() -> resources.abc.Traversable:
    return resources.files("fedstill.simulation").joinpath("experiments")
