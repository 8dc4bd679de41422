"""The devices of the robustness experiment: which scenario, condition and severity, which classes, how many clips.

Scenarios, by PERSONALISATION.md: A capture shift and all classes; B capture shift and half of the classes; C one
modality only; D neither; E the card is stale; F few clips; G half of the classes, which is the thesis' own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import ConfigError
from fedstill.datasets.audiovisual.capture.conditions import Condition, DeviceCapture
from fedstill.datasets.audiovisual.clip import ClipSource
from fedstill.simulation.robustness_settings import ConditionSettings, Modality, RobustnessSettings

Positions = npt.NDArray[np.int64]
ClassPart = Literal["all", "first", "second"]
HALVES: tuple[ClassPart, ClassPart] = ("first", "second")


@dataclass(frozen=True, slots=True)
class Recorder:
    """A microphone and a camera.

    Attributes:
        condition: what they do to clips.
        name: of the pair with its severity. Cells with the same name have the same room and noise, in part (C) or in
            all, so that scenarios differ by nothing else.
    """

    condition: Condition
    name: str

    def capture(self, fold: int, base: int) -> DeviceCapture:
        """The condition with its seed; a run with fewer scenarios has the same devices."""
        digest = sha256(repr((base, fold, self.name)).encode()).digest()
        return DeviceCapture(self.condition, int.from_bytes(digest[:4], "little") // 2)


@dataclass(frozen=True, slots=True)
class Cell:
    """One device.

    Attributes:
        scenario: A to G.
        condition: how it records, named by its effects; ``none``: as the public clips.
        severity: counted from 1, mild to hard; 0 without a condition.
        classes: all of them, or one half of the class order.
        query: how many clips it may summarise; 0: all query clips.
        recorder: of its clips.
        told: the recorder of the clips that its card is of; another one only in E.
    """

    scenario: str
    condition: str
    severity: int
    classes: ClassPart
    query: int
    recorder: Recorder
    told: Recorder

    @property
    def kind(self) -> tuple[object, ...]:
        """What it shares with the devices that differ from it by their condition alone."""
        recorded = self.recorder.condition
        return (
            self.scenario,
            self.severity,
            self.classes,
            self.query,
            bool(recorded.sound),
            bool(recorded.pictures),
        )


def cells_of(settings: RobustnessSettings) -> tuple[Cell, ...]:
    """All devices, by scenario."""
    return tuple(cell for scenario in settings.scenarios for cell in _SCENARIOS[scenario](settings))


def deal_cells(source: ClipSource, private: Positions, settings: RobustnessSettings) -> tuple[Positions, ...]:
    """The private positions of each device. Raises ConfigError if one has none."""
    labels = np.array([source.index[position].label for position in private])
    second = labels >= (len(source.class_names) + 1) // 2
    halves = {"all": labels >= 0, "first": ~second, "second": second}
    cells = cells_of(settings)
    for cell in cells:
        if not halves[cell.classes].any():
            raise ConfigError(f"{source.name}: no private clips of the {cell.classes} half of the classes")
    return tuple(private[halves[cell.classes]] for cell in cells)


def rotated(cells: Sequence[Cell]) -> tuple[int | None, ...]:
    """Per device another one that differs by its condition alone, if there is one; no device is used twice."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, cell in enumerate(cells):
        groups[cell.kind].append(number)
    others: list[int | None] = [None] * len(cells)
    for group in groups.values():
        for place, number in enumerate(group) if len(group) > 1 else ():
            others[number] = group[(place + 1) % len(group)]
    return tuple(others)


def _shifted(
    settings: RobustnessSettings,
    scenario: str,
    condition: ConditionSettings,
    severity: int,
    *,
    classes: ClassPart = "all",
    query: int = 0,
    modality: Modality = "both",
    told: ConditionSettings | None = None,
) -> Cell:
    recorder = _recorder(settings, condition, severity, modality)
    stale = _recorder(settings, told, severity, modality) if told else recorder
    return Cell(scenario, condition.label(modality), severity, classes, query, recorder, stale)


def _recorder(
    settings: RobustnessSettings, condition: ConditionSettings, severity: int, modality: Modality
) -> Recorder:
    strength = settings.steps(condition)[severity - 1]
    return Recorder(condition.at(strength, settings.family, modality), f"{condition.label()} {severity}")


def _as_public(settings: RobustnessSettings, scenario: str, classes: ClassPart) -> Cell:
    plain = Recorder(Condition("none", settings.family), "none")
    return Cell(scenario, "none", 0, classes, 0, plain, plain)


def _capture_shift(settings: RobustnessSettings) -> Iterator[Cell]:
    for condition in settings.conditions:
        for severity in settings.levels or range(1, len(settings.steps(condition)) + 1):
            yield _shifted(settings, "A", condition, severity)


def _capture_and_classes(settings: RobustnessSettings) -> Iterator[Cell]:
    for condition in settings.conditions:
        for half in HALVES:
            yield _shifted(settings, "B", condition, settings.middle, classes=half)


def _one_modality(settings: RobustnessSettings) -> Iterator[Cell]:
    modalities: tuple[Modality, Modality] = ("sound", "pictures")
    for condition in settings.conditions:
        for modality in modalities:
            yield _shifted(settings, "C", condition, settings.middle, modality=modality)


def _neither(settings: RobustnessSettings) -> Iterator[Cell]:
    yield _as_public(settings, "D", "all")


def _stale_card(settings: RobustnessSettings) -> Iterator[Cell]:
    told = (*settings.conditions[1:], *settings.conditions[:1])
    for condition, other in zip(settings.conditions, told, strict=True):
        yield _shifted(settings, "E", condition, settings.middle, told=other)


def _few_clips(settings: RobustnessSettings) -> Iterator[Cell]:
    for condition in settings.conditions[: settings.few_conditions]:
        for count in settings.few_clips:
            yield _shifted(settings, "F", condition, settings.middle, query=count)


def _half_of_the_classes(settings: RobustnessSettings) -> Iterator[Cell]:
    for half in HALVES:
        yield _as_public(settings, "G", half)


_SCENARIOS = {
    "A": _capture_shift,
    "B": _capture_and_classes,
    "C": _one_modality,
    "D": _neither,
    "E": _stale_card,
    "F": _few_clips,
    "G": _half_of_the_classes,
}
