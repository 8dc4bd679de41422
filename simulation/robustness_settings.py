"""``[robustness]``: which devices the robustness experiment has, next to the code that makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedstill.cloud_server.distillation.settings import at_least
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.capture.effects import Family

ScenarioName = Literal["A", "B", "C", "D", "E", "F", "G"]
ALL_SCENARIOS: tuple[ScenarioName, ...] = ("A", "B", "C", "D", "E", "F", "G")
NOT_SHIFTED = ("D", "G")
"""Scenarios whose devices record as the public clips were recorded."""
Modality = Literal["both", "sound", "pictures"]


@dataclass(frozen=True, slots=True)
class ConditionSettings:
    """How a device records: an effect for its microphone and room, and one for its camera and light."""

    sound: str  # name of a sound effect
    pictures: str  # name of a picture effect
    sound_strength: float = 1.0  # of the sound effect at severity 1
    pictures_strength: float = 1.0  # of the picture effect at severity 1
    severities: tuple[float, ...] = ()  # of this condition, from mild to hard; empty: those of the table

    def label(self, modality: Modality = "both") -> str:
        """Its effects, or that of one modality."""
        return {"both": f"{self.sound}+{self.pictures}", "sound": self.sound, "pictures": self.pictures}[
            modality
        ]

    def at(self, severity: float, family: Family, modality: Modality = "both") -> Condition:
        """Both effects, or one of them, at ``severity`` times their strength."""
        sound = ((self.sound, self.sound_strength * severity),) if modality != "pictures" else ()
        pictures = ((self.pictures, self.pictures_strength * severity),) if modality != "sound" else ()
        name = ", ".join(f"{effect} {strength:g}" for effect, strength in (*sound, *pictures))
        return Condition(name, family, sound, pictures)


@dataclass(frozen=True, slots=True)
class RobustnessSettings:
    """The devices of the robustness experiment; ``partition.kind`` ``robustness`` makes them."""

    fold: int = 0  # whose speakers are private
    folds: int = 1  # parts into which all speakers are divided, sorted by name; 1: the split of the data
    per_recording: int = 2  # private clips of one recording that count, the first ones; 0: all
    scenarios: tuple[ScenarioName, ...] = ALL_SCENARIOS
    """A capture shift; B capture shift and half of the classes; C one modality only; D neither; E the card is that of
    another condition; F few clips; G half of the classes."""
    family: Family = "development"  # of the effects: what settings are chosen on, or what is tested
    conditions: tuple[ConditionSettings, ...] = ()  # how devices record
    severities: tuple[float, ...] = (0.5, 1.0, 1.5)  # factors of a condition's strengths, from mild to hard
    levels: tuple[int, ...] = ()  # A: at which of the severities, counted from 1; empty: at all of them
    middle: int = 2  # the severity of all scenarios but A, counted from 1
    few_clips: tuple[int, ...] = (8, 16, 44)  # F: how many clips a device may summarise
    few_conditions: int = 2  # F: so many of the conditions, the first ones

    def __post_init__(self) -> None:
        at_least(0, self, "fold", "per_recording")
        at_least(1, self, "folds", "few_conditions")
        if self.fold >= self.folds:
            raise ValueError(f"fold: {self.fold} is not one of 0 to {self.folds - 1}")
        if len(set(self.scenarios)) < len(self.scenarios) or not self.scenarios:
            raise ValueError("scenarios: name each one once, and at least one")
        if min(self.few_clips, default=0) < 1:
            raise ValueError("few_clips: needs numbers of clips from 1")
        names = [(one.sound, one.pictures) for one in self.conditions]
        if len(set(names)) < len(names):
            raise ValueError("conditions: two of them have the same effects")
        for condition in self.conditions:
            steps = self.steps(condition)
            if list(steps) != sorted(set(steps)) or steps[0] <= 0:
                raise ValueError(f"severities: {list(steps)} do not rise from above 0")
            for key, level in (("middle", self.middle), *(("levels", level) for level in self.levels)):
                if not 1 <= level <= len(steps):
                    raise ValueError(f"{key}: {level} is none of {len(steps)} severities")
            condition.at(steps[-1], self.family)

    def steps(self, condition: ConditionSettings) -> tuple[float, ...]:
        """The severities of one condition. Raises ValueError if there is none."""
        steps = condition.severities or self.severities
        if not steps:
            raise ValueError("severities: needs at least one")
        return steps

    def require_conditions(self) -> None:
        """Raise ValueError if the scenarios need more conditions than there are."""
        shifted = [name for name in self.scenarios if name not in NOT_SHIFTED]
        needed = 2 if "E" in shifted else min(1, len(shifted))
        if len(self.conditions) < needed:
            raise ValueError(
                f"robustness: scenario {shifted[0] if needed == 1 else 'E'} needs {needed} or more conditions"
            )
