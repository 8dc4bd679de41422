"""Public clips under a device's true condition: an upper reference, which only a simulation has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture.captured import captured_frames, captured_sound, with_channels_last
from fedstill.datasets.audiovisual.capture.conditions import DeviceCapture
from fedstill.datasets.audiovisual.capture.effects import SoundEffects


@dataclass(frozen=True)
class TrueCapture:
    """A ``views.Renderer``.

    Attributes:
        capture: the device's condition and seed.
        sample_rate: of the sound, in Hz.
        sound_effects: with the device's babble.
    """

    capture: DeviceCapture
    sample_rate: int
    sound_effects: SoundEffects

    @property
    def sound(self) -> object | None:
        return self.capture.condition.sound or None

    @property
    def pictures(self) -> object | None:
        return self.capture.condition.pictures or None

    def render_sound(
        self, waveform: npt.NDArray[np.float32], position: int, rng: np.random.Generator, jitter: float = 1.0
    ) -> npt.NDArray[np.float32]:
        """See ``views.Renderer``."""
        where = self.capture
        draw = str(rng.integers(2**31))
        return captured_sound(
            waveform, self.sample_rate, where.condition, where.seed, draw, self.sound_effects
        )

    def render_pictures(
        self, frames: npt.NDArray[np.uint8], rng: np.random.Generator, jitter: float = 1.0
    ) -> npt.NDArray[np.uint8]:
        """See ``views.Renderer``."""
        where, draw = self.capture, str(rng.integers(2**31))
        return with_channels_last(
            frames, lambda seen: captured_frames(seen, where.condition, where.seed, draw)
        )
