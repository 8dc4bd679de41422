"""The sound of public clips beside their tensors, so that they can be rendered as another device would record them.

16-bit waveforms at the model's sample rate, as recorded: neither cut nor repeated. Clips with the same sound share it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

SOUND_FILE, PLACES_FILE = "sound.int16", "sound_places.npy"
FULL_SCALE = 32767


@dataclass(frozen=True)
class SoundStore:
    """The waveforms of a store's clips.

    Attributes:
        samples: int16 (samples,), memory-mapped: all waveforms in a row.
        places: int64 (clips, 2): start and length of each clip's; length 0 for a clip without a waveform.
    """

    samples: npt.NDArray[np.int16]
    places: npt.NDArray[np.int64]

    def waveform(self, position: int) -> npt.NDArray[np.float32]:
        """float32 (samples,) of a clip, in [-1, 1]; empty if it has none."""
        start, length = self.places[position]
        return self.samples[start : start + length].astype(np.float32) / np.float32(FULL_SCALE)

    def sounds(self) -> npt.NDArray[np.int64]:
        """A number for each clip's sound, int64 (clips,); clips that share one have the same."""
        return np.unique(self.places, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


class SoundWriter:
    """Writes a sound store clip by clip into a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._file = directory, (directory / SOUND_FILE).open("wb")
        self._known: dict[bytes, tuple[int, int]] = {}
        self._places: list[tuple[int, int]] = []
        self._end = 0

    def add(self, waveform: npt.NDArray[np.floating] | None) -> None:
        """The next clip's waveform at the model's sample rate; None if it has none."""
        rounded = np.round(np.clip(np.zeros(0) if waveform is None else waveform, -1, 1) * FULL_SCALE).astype(
            "<i2"
        )
        content = rounded.tobytes()
        digest = hashlib.sha256(content).digest()
        if digest not in self._known:
            self._file.write(content)
            self._known[digest] = self._end, len(rounded)
            self._end += len(rounded)
        self._places.append(self._known[digest])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Write the table of places."""
        self._file.close()
        np.save(
            self._directory / PLACES_FILE, np.array(self._places, np.int64).reshape(-1, 2), allow_pickle=False
        )


def open_sound(directory: Path, clips: int) -> SoundStore | None:
    """The sound beside a clip store; None if it was not kept. Raises ValueError if it does not fit the clips."""
    if not (directory / PLACES_FILE).exists():
        return None
    places = np.load(directory / PLACES_FILE, allow_pickle=False)
    file = directory / SOUND_FILE
    samples = np.memmap(file, "<i2", "r") if file.stat().st_size else np.empty(0, "<i2")
    fits = places.dtype == np.int64 and places.shape == (clips, 2) and bool((places >= 0).all())
    if not fits or (places[:, 0] > len(samples)).any() or (places[:, 1] > len(samples) - places[:, 0]).any():
        raise ValueError("its sound does not fit its clips")
    return SoundStore(samples, places)
