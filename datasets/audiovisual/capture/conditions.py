"""What a device does to everything that it records, as one small value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture.effects import (
    PICTURE_EFFECTS,
    SOUND_EFFECTS,
    Family,
    check_strength,
)
from fedstill.datasets.audiovisual.capture.picture_effects import NOISE_DEVIATION
from fedstill.datasets.audiovisual.capture.sound_effects import noise_strength

Applied = tuple[tuple[str, float], ...]
"""Effects and their strengths, in the order in which they act."""


@dataclass(frozen=True)
class Condition:
    """The microphone, room, camera and light of a device.

    Attributes:
        name: for tables and messages.
        family: of all its effects.
        sound, pictures: names of ``SOUND_EFFECTS[family]`` and ``PICTURE_EFFECTS[family]`` with strengths; empty if
            the device records sound or pictures as the public clips were recorded.

    Raises:
        DataError: an unknown family, an effect that the family does not have, or a strength below 0.
    """

    name: str
    family: Family
    sound: Applied = ()
    pictures: Applied = ()

    def __post_init__(self) -> None:
        if self.family not in SOUND_EFFECTS:
            raise DataError(f"{self.name}: no capture family {self.family!r}: choose development or test")
        self._check("sound", self.sound, SOUND_EFFECTS[self.family])
        self._check("picture", self.pictures, PICTURE_EFFECTS[self.family])

    def scaled(self, factor: float) -> Condition:
        """The same effects with ``factor`` times the strength: severities of one condition."""
        return replace(
            self,
            sound=tuple((effect, strength * factor) for effect, strength in self.sound),
            pictures=tuple((effect, strength * factor) for effect, strength in self.pictures),
        )

    def _check(self, kind: str, applied: Applied, known: Mapping[str, object]) -> None:
        for effect, strength in applied:
            check_strength(strength)
            if effect not in known:
                raise DataError(
                    f"{self.name}: no {kind} effect {effect!r} in the {self.family} family: choose one of "
                    f"{', '.join(known)}"
                )


@dataclass(frozen=True)
class DeviceCapture:
    """One device's condition with the seed of its own room, lamp and noise (``captured.py``)."""

    condition: Condition
    seed: int


def random_condition(rng: np.random.Generator) -> Condition:
    """A condition of the development family, to train a student for devices about which nothing is known.

    Each effect is there in half of all conditions: white or pink noise from 20 to 5 dB, a tilt of up to 6 dB per
    octave, a low-pass at 4 kHz; gamma between 0.6 and 1.8, blur with a deviation of 0.5 to 1 pixel, noise with
    one of 5 to 12 grey values. Which way the tilt and the gamma go is drawn where they are applied.
    """
    noise = ("white_noise", "pink_noise")[rng.integers(2)]
    return Condition(
        name="random",
        family="development",
        sound=_half_of(
            [
                (noise, noise_strength(rng.uniform(5, 20))),
                ("spectral_tilt", rng.uniform()),
                ("low_pass", 1.0),
            ],
            rng,
        ),
        pictures=_half_of(
            [
                ("gamma", rng.uniform()),
                ("blur", rng.uniform(0.5, 1)),
                ("sensor_noise", rng.uniform(5 / NOISE_DEVIATION, 1)),
            ],
            rng,
        ),
    )


def _half_of(effects: Iterable[tuple[str, float]], rng: np.random.Generator) -> Applied:
    return tuple(effect for effect in effects if rng.uniform() < 0.5)
