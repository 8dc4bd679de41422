"""Public clips in several versions: as they are, as random devices would have recorded them, or as one device would.

A training step takes one version of each clip, drawn. So the teacher's targets stay those of the clean clip, and what
the student sees varies.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from fedstill.common.atomic_files import replace_text
from fedstill.datasets.audiovisual.capture.captured import captured_frames, captured_sound, with_channels_last
from fedstill.datasets.audiovisual.capture.conditions import random_condition
from fedstill.datasets.audiovisual.spectrogram import audio_features
from fedstill.datasets.audiovisual.store import ClipStore

Positions = npt.NDArray[np.int64]
Tensors = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""(audio (n, bins, steps), frames (n, count, channels, size, size))"""
HEDGE = 1 / 3
DONE_FILE, AUDIO_FILE, FRAMES_FILE = "done", "audio.npy", "frames.npy"


class ClipViews(Protocol):
    """What a training sees of some clips. Implemented by the classes below."""

    def take(self, positions: Positions, generator: torch.Generator) -> Tensors:
        """One version of each of these clips."""
        ...

    def fixed(self, positions: Positions) -> Tensors:
        """The same version of each of these clips every time: for judging."""
        ...


@dataclass(frozen=True)
class PlainViews:
    """The clips as they are."""

    store: ClipStore

    def take(self, positions: Positions, generator: torch.Generator) -> Tensors:
        return self.fixed(positions)

    def fixed(self, positions: Positions) -> Tensors:
        return self.store.audio[positions], self.store.frames[positions]


@dataclass(frozen=True)
class MixedViews:
    """Every clip as it is, and as random devices would have recorded it; each with the same chance.

    Attributes:
        audio, frames: of the other versions.
    """

    store: ClipStore
    audio: tuple[npt.NDArray[np.float16], ...]
    frames: tuple[npt.NDArray[np.uint8], ...]

    def take(self, positions: Positions, generator: torch.Generator) -> Tensors:
        sounds, pictures = (_drawn(len(self.audio) + 1, len(positions), generator) for _ in range(2))
        audio, frames = self.store.audio[positions], self.store.frames[positions]
        for row, (position, sound, picture) in enumerate(zip(positions, sounds, pictures, strict=True)):
            if sound:
                audio[row] = self.audio[sound - 1][position]
            if picture:
                frames[row] = self.frames[picture - 1][position]
        return audio, frames

    def fixed(self, positions: Positions) -> Tensors:
        return self.store.audio[positions], self.store.frames[positions]


class Renderer(Protocol):
    """How a device records. Implemented by ``Rendering`` and ``TrueCapture``; a part that is None stays as it is."""

    @property
    def sound(self) -> object | None: ...

    @property
    def pictures(self) -> object | None: ...

    def render_sound(
        self, waveform: npt.NDArray[np.float32], position: int, rng: np.random.Generator, jitter: float = 1.0
    ) -> npt.NDArray[np.float32]:
        """The sound of the clip at ``position``, float32 (samples,), not yet clipped to [-1, 1]. ``jitter`` 0: as the
        device records on average."""
        ...

    def render_pictures(
        self, frames: npt.NDArray[np.uint8], rng: np.random.Generator, jitter: float = 1.0
    ) -> npt.NDArray[np.uint8]:
        """uint8 (count, channels, size, size)."""
        ...


class RenderedViews:
    """Every clip as one device would have recorded it, in some versions, made when first needed.

    Args:
        store: of clips whose sound was kept.
        rendering: as the device records.
        seed: of the versions.
        versions: how many there are of every sound and of every clip's pictures.

    Attributes:
        parts: whether sound and pictures are rendered.
    """

    def __init__(self, store: ClipStore, rendering: Renderer, seed: int, versions: int) -> None:
        self._store, self._rendering, self._seed, self._versions = store, rendering, seed, versions
        self.parts = rendering.sound is not None, rendering.pictures is not None
        self._sounds = store.sound.sounds() if store.sound else np.arange(len(store))
        self._audio: dict[tuple[int, int], npt.NDArray[np.float16]] = {}
        self._frames: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}

    def only(self, *, sound: bool, pictures: bool) -> RenderedViews:
        """The same versions of the wanted parts, made but once; the other part stays as it is."""
        views = copy.copy(self)
        views.parts = sound, pictures
        return views

    def forget(self) -> None:
        """Free the versions made so far, of all parts; they are made again, the same, when they are needed."""
        self._audio.clear()
        self._frames.clear()

    def take(self, positions: Positions, generator: torch.Generator) -> Tensors:
        sounds, pictures = (_drawn(self._versions, len(positions), generator) for _ in range(2))
        return self._versions_of(positions, sounds, pictures)

    def fixed(self, positions: Positions) -> Tensors:
        average = np.full(len(positions), self._versions)
        return self._versions_of(positions, average, average)

    def _versions_of(self, positions: Positions, sounds: Positions, pictures: Positions) -> Tensors:
        audio, frames = self._store.audio[positions], self._store.frames[positions]
        for row, (position, sound, picture) in enumerate(zip(positions, sounds, pictures, strict=True)):
            if self.parts[0]:
                audio[row] = self._sound(int(position), int(sound))
            if self.parts[1]:
                frames[row] = self._pictures(int(position), int(picture))
        return audio, frames

    def _sound(self, position: int, version: int) -> npt.NDArray[np.float16]:
        key = int(self._sounds[position]), version
        if key not in self._audio:
            rng = np.random.default_rng((self._seed, 0, *key))
            waveform = self._rendering.render_sound(
                _waveform(self._store, position), position, rng, self._jitter(version)
            )
            self._audio[key] = _features(self._store, waveform)
        return self._audio[key]

    def _jitter(self, version: int) -> float:
        """The version after the last one is for judging."""
        return 1.0 if version < self._versions else 0.0

    def _pictures(self, position: int, version: int) -> npt.NDArray[np.uint8]:
        key = position, version
        if key not in self._frames:
            rng = np.random.default_rng((self._seed, 1, *key))
            self._frames[key] = self._rendering.render_pictures(
                self._store.frames[position], rng, self._jitter(version)
            )
        return self._frames[key]


@dataclass(frozen=True)
class HedgedViews:
    """Clips as one device would have recorded them, and some as random ones would: a card may be wrong, and a student
    that was trained on nothing else has forgotten all other microphones and cameras.

    Attributes:
        rendered: for the device.
        blind: for random devices. A part that is not rendered is theirs alone.
        hedge: the chance that a rendered part is theirs, too.
    """

    rendered: RenderedViews
    blind: ClipViews
    hedge: float = HEDGE

    def take(self, positions: Positions, generator: torch.Generator) -> Tensors:
        audio, frames = self.rendered.take(positions, generator)
        other_audio, other_frames = self.blind.take(positions, generator)
        sounds, pictures = (self._theirs(part, len(positions), generator) for part in self.rendered.parts)
        audio[sounds], frames[pictures] = other_audio[sounds], other_frames[pictures]
        return audio, frames

    def _theirs(self, rendered: bool, count: int, generator: torch.Generator) -> npt.NDArray[np.bool_]:
        drawn = torch.rand(count, generator=generator).numpy()
        return np.asarray(drawn < (self.hedge if rendered else 1.0))

    def fixed(self, positions: Positions) -> Tensors:
        return self.rendered.fixed(positions)


def blind_views(store: ClipStore, versions: int, directory: Path, seed: int) -> ClipViews:
    """The clips as random devices of the development family would have recorded them, made once and kept on disk.

    Args:
        store: of the public clips; without their sound, only pictures vary.
        versions: beside the clip as it is; 0: none.
        directory: where the versions are kept.
        seed: of the conditions.
    """
    made = [_blind_version(store, directory / f"version{one}", seed, one) for one in range(versions)]
    if not made:
        return PlainViews(store)
    return MixedViews(store, tuple(audio for audio, _ in made), tuple(frames for _, frames in made))


def _blind_version(
    store: ClipStore, folder: Path, seed: int, version: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """One version from disk; made, or made again, if it is not there, damaged or of other clips."""
    made_of = f"{len(store)} clips, seed {seed}, version {version}"
    found = _opened(store, folder, made_of)
    if found is None:
        _make_version(store, folder, seed, version)
        replace_text(folder / DONE_FILE, made_of)
        found = _opened(store, folder, made_of)
        assert found is not None
    return found


def _opened(
    store: ClipStore, folder: Path, made_of: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]] | None:
    try:
        if (folder / DONE_FILE).read_text() != made_of:
            return None
        audio, frames = (
            np.load(folder / name, "r", allow_pickle=False) for name in (AUDIO_FILE, FRAMES_FILE)
        )
    except (OSError, EOFError, ValueError):
        return None
    return (audio, frames) if (audio.shape, frames.shape) == (store.audio.shape, store.frames.shape) else None


def _make_version(store: ClipStore, folder: Path, seed: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DONE_FILE).unlink(missing_ok=True)
    audio = np.lib.format.open_memmap(folder / AUDIO_FILE, "w+", np.float16, store.audio.shape)
    frames = np.lib.format.open_memmap(folder / FRAMES_FILE, "w+", np.uint8, store.frames.shape)
    sounds = store.sound.sounds() if store.sound else np.arange(len(store))
    made: dict[int, int] = {}
    for row in range(len(store)):
        first = made.setdefault(int(sounds[row]), row)
        audio[row] = audio[first] if first < row else _random_sound(store, row, seed, version)
        frames[row] = _random_frames(store, row, seed, version)
    audio.flush()
    frames.flush()


def _random_sound(store: ClipStore, row: int, seed: int, version: int) -> npt.NDArray[np.float16]:
    waveform = _waveform(store, row)
    if not len(waveform):
        return np.asarray(store.audio[row], np.float16)
    rng = np.random.default_rng((seed, version, row, 0))
    condition, draw = random_condition(rng), int(rng.integers(2**31))
    return _features(store, captured_sound(waveform, store.audio_spec.sample_rate, condition, draw, ""))


def _random_frames(store: ClipStore, row: int, seed: int, version: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng((seed, version, row, 1))
    condition, draw = random_condition(rng), int(rng.integers(2**31))
    return with_channels_last(store.frames[row], lambda frames: captured_frames(frames, condition, draw, ""))


def _waveform(store: ClipStore, position: int) -> npt.NDArray[np.float32]:
    return np.empty(0, np.float32) if store.sound is None else store.sound.waveform(position)


def _features(store: ClipStore, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    found = audio_features(waveform, store.audio_spec.sample_rate, store.audio_spec)
    return np.asarray(found, np.float16)


def _drawn(count: int, size: int, generator: torch.Generator) -> Positions:
    return torch.randint(count, (size,), generator=generator).numpy()
