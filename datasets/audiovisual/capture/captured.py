"""A dataset as one device would have recorded it.

Real devices cannot be had with labels and with the same clips recorded twice. So a clip of a ready dataset is
recorded again by computing: what belongs to the device (its room, the side of its lamp) is drawn from the device's
seed alone, what belongs to a clip (noise, the person who moves) from the seed and the clip's id. No clip
depends on which were loaded before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.capture.effects import PICTURE_EFFECTS, SOUND_EFFECTS, SoundEffects
from fedstill.datasets.audiovisual.capture.signals import Waveform
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo, ClipSource
from fedstill.datasets.decoding.image_files import Frames

GAIN_JITTER_DB = 2.0
"""A speaker is not always equally far away."""


class CapturedSource:
    """A ClipSource: every clip of another one, recorded under one condition.

    Args:
        source: of the clips.
        condition: what the device does to them.
        seed: of the device; two devices with the same condition have different rooms and different noise.
        sound_effects: with the talkers that ``babble`` takes, if not the invented ones (see ``with_babble``).
    """

    def __init__(
        self,
        source: ClipSource,
        condition: Condition,
        seed: int,
        sound_effects: SoundEffects = SOUND_EFFECTS,
    ) -> None:
        self.source = source
        self.condition = condition
        self.seed = seed
        self.sound_effects = sound_effects

    @property
    def name(self) -> str:
        return f"{self.source.name} ({self.condition.name})"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def index(self) -> tuple[ClipInfo, ...]:
        return self.source.index

    def load(self, position: int) -> Clip:
        """Decode clip ``position`` of ``index`` and record it."""
        return captured_clip(self.source.load(position), self.condition, self.seed, self.sound_effects)


def captured_clip(
    clip: Clip, condition: Condition, seed: int, sound_effects: SoundEffects = SOUND_EFFECTS
) -> Clip:
    """``clip`` as the device with this condition and seed records it.

    The sound of a clip that is a ready feature matrix (sample rate 0) stays: nothing can be recorded again there.
    """
    identity = clip.info.clip_id
    audio = clip.audio
    if clip.sample_rate:
        audio = captured_sound(audio, clip.sample_rate, condition, seed, identity, sound_effects)
    between = clip.frames_between
    return replace(
        clip,
        audio=audio,
        frames=captured_frames(clip.frames, condition, seed, identity),
        frames_between=between
        and (lambda start, end: captured_frames(between(start, end), condition, seed, identity)),
    )


def captured_sound(
    waveform: Waveform,
    rate: int,
    condition: Condition,
    seed: int,
    clip_id: str,
    sound_effects: SoundEffects = SOUND_EFFECTS,
) -> Waveform:
    """float32 (samples,) at ``rate`` Hz -> float32 (samples,) in [-1, 1].

    A condition that changes the sound also makes each clip up to 2 dB louder or softer; one that does not
    gives ``waveform`` itself.
    """
    active = _active(condition.sound)
    if not active:
        return waveform
    heard = waveform
    for effect, strength in active:
        apply = sound_effects[condition.family][effect]
        heard = apply(heard, rate, strength, _generator(seed, effect, "" if apply.per_device else clip_id))
    gain = _generator(seed, "gain", clip_id).uniform(-GAIN_JITTER_DB, GAIN_JITTER_DB)
    return np.asarray(np.clip(heard * np.float32(10 ** (gain / 20)), -1.0, 1.0), np.float32)


def captured_frames(frames: Frames, condition: Condition, seed: int, clip_id: str) -> Frames:
    """uint8 RGB (count, height, width, 3) -> uint8 of the same shape."""
    seen = frames
    for effect, strength in _active(condition.pictures):
        apply = PICTURE_EFFECTS[condition.family][effect]
        seen = apply(seen, strength, _generator(seed, effect, "" if apply.per_device else clip_id))
    return seen


def with_channels_last(
    frames: npt.NDArray[np.uint8], change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
) -> npt.NDArray[np.uint8]:
    """Apply a change of RGB pictures, (count, height, width, 3), to frames (count, channels, height, width)."""
    count, channels, *sides = frames.shape
    pictures = np.broadcast_to(frames, (count, 3, *sides)).transpose(0, 2, 3, 1)
    return change(np.ascontiguousarray(pictures)).transpose(0, 3, 1, 2)[:, :channels]


def _active(applied: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(effect, strength) for effect, strength in applied if strength > 0]


def _generator(seed: int, effect: str, clip_id: str) -> np.random.Generator:
    """Independent for every effect, so that the sign of a tilt says nothing about the sign of a gamma."""
    digest = sha256(f"{seed}\n{effect}\n{clip_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
