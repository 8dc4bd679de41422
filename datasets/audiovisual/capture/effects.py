"""All capture effects by family and name.

What a generic student is hardened with (the development family) is never what it is judged with (the test family):
else one would measure how well it remembers. So the two families share no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture import picture_effects, sound_effects
from fedstill.datasets.audiovisual.capture.babble import Babble
from fedstill.datasets.audiovisual.capture.opus import low_rate_opus
from fedstill.datasets.audiovisual.capture.signals import Waveform
from fedstill.datasets.decoding.image_files import Frames

MOST_STRENGTH = 10.0
"""More leaves nothing of a clip, or no number."""
Family = Literal["development", "test"]


@dataclass(frozen=True)
class SoundEffect:
    """(waveform float32 (samples,), rate in Hz, strength, rng) -> float32 (samples,), not yet clipped to [-1, 1].

    Attributes:
        apply: for a strength above 0.
        per_device: what is drawn belongs to the device (its room, say) and not to the single clip.
    """

    apply: Callable[[Waveform, int, float, np.random.Generator], Waveform]
    per_device: bool = False

    def __call__(self, waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
        """Strength 0 gives ``waveform`` itself. Raises DataError if strength is below 0."""
        if check_strength(strength) == 0 or not len(waveform):
            return waveform
        return np.asarray(self.apply(waveform, rate, strength, rng), dtype=np.float32)


@dataclass(frozen=True)
class PictureEffect:
    """(frames uint8 RGB (count, height, width, 3), strength, rng) -> uint8 of the same shape.

    Attributes:
        apply: for a strength above 0.
        per_device: what is drawn belongs to the device (the side of its lamp, say) and not to the single clip.
    """

    apply: Callable[[Frames, float, np.random.Generator], Frames]
    per_device: bool = False

    def __call__(self, frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
        """Strength 0 gives ``frames`` themselves. Raises DataError if strength is below 0."""
        return frames if check_strength(strength) == 0 else self.apply(frames, strength, rng)


SoundEffects = Mapping[Family, Mapping[str, SoundEffect]]
PictureEffects = Mapping[Family, Mapping[str, PictureEffect]]

SOUND_EFFECTS: SoundEffects = {
    "development": {
        "white_noise": SoundEffect(sound_effects.white_noise),
        "pink_noise": SoundEffect(sound_effects.pink_noise),
        "spectral_tilt": SoundEffect(sound_effects.spectral_tilt, per_device=True),
        "low_pass": SoundEffect(sound_effects.low_pass),
    },
    "test": {
        "reverberation": SoundEffect(sound_effects.reverberation, per_device=True),
        "telephone": SoundEffect(sound_effects.telephone),
        "babble": SoundEffect(Babble()),
        "brown_noise": SoundEffect(sound_effects.brown_noise),
        "opus": SoundEffect(low_rate_opus),
        "clipping": SoundEffect(sound_effects.clipping),
    },
}

PICTURE_EFFECTS: PictureEffects = {
    "development": {
        "gamma": PictureEffect(picture_effects.change_gamma, per_device=True),
        "blur": PictureEffect(picture_effects.blur),
        "sensor_noise": PictureEffect(picture_effects.sensor_noise),
    },
    "test": {
        "side_light": PictureEffect(picture_effects.side_light, per_device=True),
        "motion_blur": PictureEffect(picture_effects.motion_blur),
        "jpeg": PictureEffect(picture_effects.jpeg),
        "camera_tilt": PictureEffect(picture_effects.camera_tilt, per_device=True),
        "defocus": PictureEffect(picture_effects.defocus),
        "low_light": PictureEffect(picture_effects.low_light),
    },
}


def with_babble(babble: Babble) -> SoundEffects:
    """``SOUND_EFFECTS`` with these talkers in the background."""
    return {**SOUND_EFFECTS, "test": {**SOUND_EFFECTS["test"], "babble": SoundEffect(babble)}}


def check_strength(strength: float) -> float:
    """The strength itself. Raises DataError if it is below 0, above ``MOST_STRENGTH`` or not a number."""
    if not 0 <= strength <= MOST_STRENGTH:
        raise DataError(
            f"the strength of a capture effect is {strength}: choose 0 (none), 1 (usual) or up to {MOST_STRENGTH:g}"
        )
    return strength
