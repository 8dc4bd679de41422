"""Clip stores, which training and devices read: clips decoded and transformed once, then memory-mapped.

A folder with two arrays, one table and one description. It needs no decoder, opens in milliseconds whatever
its size, and is shared by all processes of a machine through the page cache.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture_card import CARD_SIZE, beginning, profile
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo, ClipSource
from fedstill.datasets.audiovisual.clip_tensors import FocusCount, clip_tensors
from fedstill.datasets.audiovisual.sound_store import SoundStore, SoundWriter, open_sound
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec, spec_values
from fedstill.datasets.audiovisual.waveform import AudioTransform, Resampler, feature_shape
from fedstill.datasets.decoding.decoder_errors import decoder_errors
from fedstill.datasets.files.faults import FORM

LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1
META_FILE = "meta.json"
"""Written last: a folder with it is a whole store."""
PROFILES_FILE = "profiles.npy"
INDEX_COLUMNS = ["clip_id", "split", "speaker", "label", "group"]  # a store without the last one opens, too


@dataclass(frozen=True)
class ClipStore:
    """The tensors of some clips of a dataset, in the requested order.

    Attributes:
        directory: of the files.
        dataset: the source's name.
        class_names: in the order of the labels.
        audio_spec, frame_spec: how the clips became these arrays.
        info: identity, split, speaker, label and recording of each clip.
        audio: float32 (clips, bins, steps), memory-mapped, read-only.
        frames: uint8 (clips, count, channels, size, size), memory-mapped, read-only.
        profiles: float32 (clips, CARD_SIZE), how each clip was recorded (``capture_card.py``); None in older stores.
        sound: the waveforms, if they were kept.
    """

    directory: Path
    dataset: str
    class_names: tuple[str, ...]
    audio_spec: AudioSpec
    frame_spec: FrameSpec
    info: tuple[ClipInfo, ...]
    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]
    profiles: npt.NDArray[np.float32] | None = None
    sound: SoundStore | None = None

    def __len__(self) -> int:
        return len(self.info)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 (clips,), -1 if the owner has not labelled the clip."""
        return np.array([-1 if clip.label is None else clip.label for clip in self.info], dtype=np.int64)

    @property
    def speakers(self) -> tuple[str, ...]:
        return tuple(clip.speaker for clip in self.info)

    @property
    def recordings(self) -> tuple[str, ...]:
        return tuple(clip.recording for clip in self.info)


def build_store(
    source: ClipSource,
    positions: Sequence[int],
    audio: AudioSpec,
    frames: FrameSpec,
    directory: Path,
    progress: Callable[[int, int], None] | None = None,
    transform: AudioTransform | None = None,
    *,
    keep_sound: bool = False,
    feature_steps: int | None = None,
    on_bad: Callable[[int, DataError], None] | None = None,
) -> ClipStore:
    """Decode ``positions`` of ``source`` into ``directory``, or reuse an existing store of the same clips.

    The folder appears complete or not at all: it is written as a sibling and renamed. An older store in its
    place is replaced. A store with the same clip ids, specifications and versions counts as the same; if it lacks the
    groups or has others, only its table is written anew. If media changed under the same ids, delete the folder first.

    Args:
        source: any dataset.
        positions: into ``source.index``; their order becomes the store's.
        audio, frames: the model's specifications.
        directory: of the store; not existing yet, or an earlier store.
        progress: called with (clips done, clips in all) after each clip.
        transform: makes waveforms into matrices; by default torch's, or the equal one of numpy if there is no torch.
        keep_sound: keep the waveforms beside the matrices (``sound_store.py``).
        feature_steps: columns of ready feature matrices, which are repeated and cut to it as sound is. By default they
            stay as they are if all have one length, and else get the columns of a spectrogram of ``audio.seconds``.
        on_bad: called with the position of each clip that cannot be used, and why; it is left out. Without it, the
            first one is raised.

    Raises:
        DataError: no positions, a clip that cannot be decoded, or none that can, feature matrices with different
            numbers of rows, a mix of waveforms and feature matrices, or a ``directory`` that holds something else.
    """
    if not len(positions):
        raise DataError(f"no clips of {source.name} are chosen for {directory}: choose at least one")
    info = tuple(source.index[position] for position in positions)
    meta = _describe(source, audio, frames)
    if _holds(directory, meta, info, keep_sound, feature_steps):
        return _with_groups(open_store(directory), info)
    if directory.exists() and not (directory / META_FILE).exists() and any(directory.iterdir()):
        raise DataError(f"{directory}: is not a clip store and not empty: choose another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = directory.with_name(f".{directory.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    made = transform or _default_transform()
    try:
        rest = (draft, progress, made, keep_sound)
        try:
            kept = _write_arrays(source, positions, audio, frames, *rest, feature_steps, on_bad)
        except _LengthsDiffer:
            steps = feature_shape(audio)[1]
            kept = _write_arrays(source, positions, audio, frames, *rest, steps, on_bad)
        write_index(draft / "index.csv", [info[row] for row in kept])
        (draft / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        put_in_place(draft, directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return open_store(directory)


def open_store(directory: Path) -> ClipStore:
    """Map a store into memory. Raises DataError if it is missing, damaged or of another format version."""
    try:
        meta = json.loads((directory / META_FILE).read_text(encoding="utf-8"))
        if meta["format"] != FORMAT_VERSION:
            raise DataError(f"{directory}: has format {meta['format']}, not {FORMAT_VERSION}: build it again")
        info = _read_index(directory / "index.csv")
        audio = np.load(directory / "audio.npy", mmap_mode="r", allow_pickle=False)
        frames = np.load(directory / "frames.npy", mmap_mode="r", allow_pickle=False)
        profiles = None
        if (directory / PROFILES_FILE).exists():
            profiles = np.load(directory / PROFILES_FILE, mmap_mode="r", allow_pickle=False)
            if profiles.dtype != np.float32 or profiles.shape[1:] != (CARD_SIZE,):
                raise ValueError("its profiles have another form")
        lengths = {len(array) for array in (audio, frames, profiles) if array is not None}
        if lengths != {len(info)}:
            raise ValueError("its files differ in length")
        return ClipStore(
            directory=directory,
            dataset=meta["dataset"],
            class_names=tuple(meta["class_names"]),
            audio_spec=AudioSpec(**meta["audio"]),
            frame_spec=FrameSpec(**meta["frames"]),
            info=info,
            audio=audio,
            frames=frames,
            profiles=profiles,
            sound=open_sound(directory, len(info)),
        )
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file: build the store {directory} again") from error
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory}: is damaged ({error}): delete it and build it again") from error


class _LengthsDiffer(Exception):
    """Ready feature matrices of different lengths, for which no common one was given."""


def _default_transform() -> AudioTransform:
    return _backend()[0]


def _backend() -> tuple[AudioTransform, Resampler]:
    """torch's, or the equal ones of numpy on a device without torch."""
    try:
        from fedstill.datasets.audiovisual import spectrogram
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ("torch", "torchaudio"):
            raise
        from fedstill.datasets.audiovisual import spectrogram_numpy

        return spectrogram_numpy.audio_features, spectrogram_numpy.resample
    return spectrogram.audio_features, spectrogram.resample


def _describe(source: ClipSource, audio: AudioSpec, frames: FrameSpec) -> dict[str, Any]:
    try:
        fedstill_version = version("fedstill")
    except PackageNotFoundError:
        fedstill_version = "not installed"
    return {
        "format": FORMAT_VERSION,
        "fedstill": fedstill_version,
        "dataset": source.name,
        "class_names": list(source.class_names),
        "audio": spec_values(audio),
        "frames": spec_values(frames),
    }


def _holds(
    directory: Path, meta: dict[str, Any], info: tuple[ClipInfo, ...], sound: bool, feature_steps: int | None
) -> bool:
    """Whether ``directory`` is an undamaged store of exactly these clips, described by ``meta``, but for groups, with
    profiles, with sound if that is wanted, and of that many columns."""
    try:
        found = json.loads((directory / META_FILE).read_text(encoding="utf-8"))
        store = open_store(directory)
        complete = store.profiles is not None and (store.sound is not None or not sound)
        complete = complete and feature_steps in (None, store.audio.shape[-1])
        return complete and bool(found == meta) and _without_groups(store.info) == _without_groups(info)
    except (OSError, ValueError):  # missing or damaged (DataError is a ValueError): build it
        return False


def _without_groups(info: tuple[ClipInfo, ...]) -> tuple[ClipInfo, ...]:
    return tuple(replace(clip, group="") for clip in info)


def _with_groups(store: ClipStore, info: tuple[ClipInfo, ...]) -> ClipStore:
    """The store with the groups of ``info``: they say how clips are counted, so no array has to be made again."""
    if store.info == info:
        return store
    draft = store.directory / f".index.{os.getpid()}.draft"
    write_index(draft, info)
    draft.replace(store.directory / "index.csv")
    return replace(store, info=info)


def _write_arrays(
    source: ClipSource,
    positions: Sequence[int],
    audio_spec: AudioSpec,
    frame_spec: FrameSpec,
    draft: Path,
    progress: Callable[[int, int], None] | None,
    transform: AudioTransform,
    keep_sound: bool,
    feature_steps: int | None,
    on_bad: Callable[[int, DataError], None] | None,
) -> list[int]:
    """Write the draft's arrays; returns which rows of ``positions`` are in them.

    Raises _LengthsDiffer at the first feature matrix of another length, if ``feature_steps`` is None.
    """
    audio = frames = None
    profiles = _create(draft / PROFILES_FILE, np.float32, (len(positions), CARD_SIZE))
    ready_made, count = False, FocusCount()
    kept: list[int] = []
    with SoundWriter(draft) if keep_sound else nullcontext() as sound:
        for row, position in enumerate(positions):
            try:
                with (
                    nullcontext() if on_bad is None else decoder_errors(Path(source.index[position].clip_id))
                ):
                    clip = source.load(position)
                    made = clip_tensors(clip, audio_spec, frame_spec, transform, feature_steps)
                    waveform = clip.audio if clip.sample_rate else None
                    recorded = profile(waveform, clip.sample_rate, audio_spec.sample_rate, made.frames)
                if audio is None or frames is None:
                    ready_made = clip.sample_rate == 0
                    audio = _create(draft / "audio.npy", np.float32, (len(positions), *made.audio.shape))
                    frames = _create(draft / "frames.npy", np.uint8, (len(positions), *made.frames.shape))
                _require_same_form(clip, ready_made, len(made.audio), audio.shape[1])
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(position, error)
            else:
                if made.audio.shape != audio.shape[1:]:
                    raise _LengthsDiffer
                audio[len(kept)], frames[len(kept)] = made.audio, made.frames
                profiles[len(kept)] = recorded
                count.add(made)
                if sound is not None:
                    sound.add(
                        None
                        if waveform is None
                        else _at_rate(waveform, clip.sample_rate, audio_spec.sample_rate)
                    )
                kept.append(row)
            if progress is not None:
                progress(row + 1, len(positions))
    if not kept:
        raise DataError(f"no clip of {source.name} can be used: see the reason of each")
    for line in count.lines():
        LOG.info('event=focus dataset=%s reason="%s"', source.name, line)
    if len(kept) < len(positions):
        for name in ("audio.npy", "frames.npy", PROFILES_FILE):
            _shorten(draft / name, len(kept))
    return kept


def _require_same_form(clip: Clip, ready_made: bool, rows: int, expected: int) -> None:
    """Raises DataError if a clip is of another kind than the first, or has more or fewer features."""
    name = clip.info.clip_id
    if ready_made != (clip.sample_rate == 0):
        raise DataError(f"clip {name}: waveforms and ready feature matrices are mixed: use one kind", FORM)
    if rows != expected:
        raise DataError(
            f"clip {name}: has {rows} features, the first clip {expected}: give all clips as many", FORM
        )


def _shorten(path: Path, rows: int) -> None:
    """Keep the first rows of an array on disk, without loading it."""
    draft = path.with_suffix(".shorter.npy")
    whole = np.load(path, mmap_mode="r")
    short = _create(draft, whole.dtype.type, (rows, *whole.shape[1:]))
    for row in range(rows):
        short[row] = whole[row]
    draft.replace(path)


def _at_rate(waveform: npt.NDArray[np.float32], source: int, target: int) -> npt.NDArray[np.float32]:
    audio = np.asarray(beginning(waveform, source), np.float32)
    return audio if source == target else _backend()[1](audio.copy(), source, target)


def _create(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def put_in_place(draft: Path, directory: Path) -> None:
    """Rename ``draft`` to ``directory``; an older store makes way first."""
    old = draft.with_suffix(".old")
    if directory.exists():
        directory.replace(old)
    try:
        draft.replace(directory)
    except OSError:
        if not (directory / META_FILE).exists():  # else another process was faster: take its store
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_index(path: Path, info: Sequence[ClipInfo]) -> None:
    """Write the table of a store, ``index.csv``."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(INDEX_COLUMNS)
        for clip in info:
            label = "" if clip.label is None else clip.label
            rows.writerow([clip.clip_id, clip.split, clip.speaker, label, clip.group])


def _read_index(path: Path) -> tuple[ClipInfo, ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            ClipInfo(
                clip_id=row["clip_id"],
                split="public" if row["split"] == "public" else "private",
                speaker=row["speaker"],
                label=int(row["label"]) if row["label"] else None,
                group=row.get("group") or "",
            )
            for row in csv.DictReader(file)
        )
