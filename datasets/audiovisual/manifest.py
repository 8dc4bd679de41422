"""The user's own clips as a dataset: a CSV with one row per clip, which names media files.

The whole table is checked before anything is decoded, and every bad row is named with its line and the
remedy, so that a training run never stops half-way over a typing error. A top-level folder may be a ``FOLDER.zip``
instead; it is read in place, without unpacking.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo, Split
from fedstill.datasets.decoding.decode import mixed, read_channels, read_video_frames
from fedstill.datasets.decoding.image_files import (
    WHOLE,
    Frames,
    Part,
    read_frames,
    read_image,
    require_visible,
    spread,
    stack_frames,
)
from fedstill.datasets.files.faults import CLASS, DAMAGED, FORM, ROW, UNDECODABLE, BadClip
from fedstill.datasets.files.file_names import readable
from fedstill.datasets.files.manifest_files import (
    MediaFile,
    fault_of_path,
    find_file,
    find_frames,
    near_miss,
    place_in,
)
from fedstill.datasets.files.picture_formats import (
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    is_film,
    looks_like_picture,
)
from fedstill.datasets.files.tables import read_table

COLUMNS = ("clip_id", "split", "speaker", "label", "audio", "frames")


class ManifestSource:
    """The clips of a CSV as a ClipSource; safe to share between threads and processes.

    Columns: ``clip_id``, ``split`` (public or private), ``speaker``, ``label`` (a class name; empty if a private clip
    is not labelled), ``audio`` (sound file, video, or a ``.npy`` feature matrix of shape (features, time)) and
    ``frames`` (video, image, folder of images, or a uint8 ``.npy`` of shape (time, height, width) or (time, height,
    width, 3)). The column ``group`` is optional: clips with the same group are one recording; by default, those with
    the same ``audio``. Further columns are ignored (``sex`` is read by ``speaker_sexes``).

    Args:
        csv_path: UTF-8, with a header; separated by commas, semicolons, tabs or bars.
        root: what the paths are relative to, or lie below; the CSV's folder by default.
        class_names: kept in this order; by default all labels in the table, sorted.
        frame_count: how many frames ``load`` takes, uniformly spaced in time; fewer are repeated in order.
        name: of the dataset; the name of the CSV's folder by default.
        allow_outside: whether paths may lead out of ``root``.
        skip_bad: leave bad rows out, into ``bad``, instead of raising; a table without a good one is still refused.

    Attributes:
        bad: what was left out, with the line number.

    Raises:
        DataError: the first bad row, with its line number; ``manifest_problems`` lists all of them.
    """

    def __init__(
        self,
        csv_path: Path,
        root: Path | None = None,
        class_names: Sequence[str] | None = None,
        frame_count: int = 10,
        name: str | None = None,
        *,
        allow_outside: bool = False,
        skip_bad: bool = False,
    ) -> None:
        self._rows, self.bad = _read_rows(csv_path, root, class_names, allow_outside)
        if self.bad and not (skip_bad and self._rows):
            more = f" (and {len(self.bad) - 1} more problems)" if len(self.bad) > 1 else ""
            raise DataError(self.bad[0].reason + more)
        self._frame_count = frame_count
        self.name = name or csv_path.resolve().parent.name
        self.class_names = tuple(map(_composed, class_names or ())) or tuple(
            sorted({row.label for row in self._rows if row.label})
        )
        numbers = {label: number for number, label in enumerate(self.class_names)}
        self.index = tuple(
            ClipInfo(row.clip_id, row.split, row.speaker, numbers.get(row.label), row.group)
            for row in self._rows
        )

    @property
    def pictures(self) -> tuple[str, ...]:
        """What each clip shows, as the path of its (first) file; the same file may be beside several sounds."""
        return tuple(str(row.frames[0].path) for row in self._rows)

    def files(self, position: int) -> tuple[Path, ...]:
        """The files on disk that hold clip ``position``."""
        row = self._rows[position]
        return tuple(dict.fromkeys(file.archive or file.path for file in (row.audio, *row.frames)))

    def load(self, position: int) -> Clip:
        """Decode clip ``position``. Raises DataError naming the file and what to do."""
        return self.load_with_channels(position)[0]

    def load_with_channels(self, position: int) -> tuple[Clip, npt.NDArray[np.float32] | None]:
        """Clip ``position``, and float32 (channels, samples) before they are mixed; None for a feature matrix.

        Raises as ``load``.
        """
        row, info = self._rows[position], self.index[position]
        channels, sample_rate = None, 0
        if row.audio.path.suffix.lower() != ".npy":
            channels, sample_rate = read_channels(row.audio.path, row.audio.read())
        audio = _load_features(row.audio) if channels is None else mixed(channels)
        frames = require_visible(row.frames[0].path, _load_frames(row.frames, self._frame_count))
        if channels is None:
            return Clip(info, audio, frames, 0), None
        between = partial(_load_frames, row.frames, self._frame_count, len(audio) / sample_rate)
        return Clip(info, audio, frames, sample_rate, between), channels


def manifest_problems(
    csv_path: Path,
    root: Path | None = None,
    class_names: Sequence[str] | None = None,
    *,
    allow_outside: bool = False,
) -> list[str]:
    """All problems of the table, one line each. Media files are checked for existence but not decoded."""
    try:
        return [row.reason for row in _read_rows(csv_path, root, class_names, allow_outside)[1]]
    except DataError as error:
        return [str(error)]


def speaker_sexes(csv_path: Path) -> dict[str, str]:
    """The optional column ``sex`` by speaker, as written; without speakers of whom the table does not say it.

    Raises:
        DataError: the table cannot be read, or says two things of one speaker.
    """
    found: dict[str, str] = {}
    for line, cells in read_table(csv_path, ("speaker",)):
        sex, speaker = cells.get("sex", ""), _composed(cells["speaker"])
        if sex and found.setdefault(speaker, sex) != sex:
            raise DataError(
                f"{csv_path}, line {line}: sex of {speaker} is {sex!r} here, {found[speaker]!r} above"
            )
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    clip_id: str
    split: Split
    speaker: str
    label: str
    audio: MediaFile
    frames: tuple[MediaFile, ...]
    """One video, image or array, or the images of a folder in time order."""
    group: str
    """The ``group`` cell, or the path of ``audio``."""


def _read_rows(
    csv_path: Path, root: Path | None, class_names: Sequence[str] | None, outside: bool
) -> tuple[tuple[_Row, ...], tuple[BadClip, ...]]:
    """The good rows, and the bad ones. Raises DataError if the whole table is unusable."""
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise DataError(f"the class list {', '.join(class_names)} names a class twice: name each once")
    rows: dict[str, _Row] = {}
    problems: list[BadClip] = []
    names = None if class_names is None else [_composed(name) for name in class_names]
    for line, cells in read_table(csv_path, COLUMNS):
        try:
            row = _parse(cells, root or csv_path.parent, names, outside)
            if row.clip_id in rows:
                raise DataError(f"clip_id {row.clip_id!r} is used twice: give every clip its own")
            rows[row.clip_id] = row
        except DataError as error:
            name = _composed(cells["clip_id"]) or f"line {line}"
            problems.append(BadClip(name, error.fault or ROW, f"{csv_path}, line {line}: {error}"))
    if not rows and not problems:
        raise DataError(f"{csv_path}: has no clips: add one row per clip")
    return tuple(rows.values()), tuple(problems)


def _parse(cells: dict[str, str], root: Path, class_names: Sequence[str] | None, outside: bool) -> _Row:
    """Raises DataError about the row; the caller adds file and line."""
    for column in ("clip_id", "speaker", "audio", "frames"):
        if not cells[column]:
            raise DataError(f"{column} is empty: fill it in or remove the row")
    label = _composed(cells["label"])
    match cells["split"]:
        case "public" | "private" as split:
            pass
        case other:
            raise DataError(f"split is {other!r}: write public or private")
    if not label and split == "public":
        raise DataError("label is empty: name the class; only private clips may be unlabelled")
    if label and class_names is not None and label not in class_names:
        raise DataError(f"label {label!r} is not a class: use one of {', '.join(class_names)}", CLASS)
    audio = find_file(root, cells["audio"], outside=outside)
    if audio is None:
        raise DataError(
            f"audio {cells['audio']} is not a file below {root}: {_add(root, cells['audio'], 'it')}",
            fault_of_path(root, cells["audio"], outside=outside),
        )
    frames = find_frames(root, cells["frames"], outside=outside)
    if not frames:
        raise DataError(
            f"frames {cells['frames']} is neither a file nor a folder with images below {root}: "
            f"{_add(root, cells['frames'], 'them')}",
            fault_of_path(root, cells["frames"], outside=outside),
        )
    group = _composed(cells.get("group") or place_in(root, audio.path))
    return _Row(_composed(cells["clip_id"]), split, _composed(cells["speaker"]), label, audio, frames, group)


def _add(root: Path, text: str, what: str) -> str:
    """What to do about a path that names nothing."""
    near = near_miss(root, text)
    return (
        f"correct the path ({near} is there)"
        if near not in ("", readable(text))
        else f"correct the path or add {what}"
    )


def _composed(name: str) -> str:
    """The same accented letter can be written in two ways: NFC is the usual one."""
    return unicodedata.normalize("NFC", name)


def _load_features(file: MediaFile) -> npt.NDArray[np.float32]:
    """float32 (features, time)."""
    features = _load_array(file)
    if features.ndim != 2 or features.size == 0 or not np.issubdtype(features.dtype, np.floating):
        raise DataError(
            f"{file.path}: is {features.dtype} {features.shape}: store floats of shape (features, time)",
            FORM,
        )
    if not np.isfinite(features).all():
        raise DataError(f"{file.path}: holds NaN or infinity: compute these features again", DAMAGED)
    return features.astype(np.float32)


def _load_frames(
    files: tuple[MediaFile, ...],
    count: int,
    seconds: float = 1.0,
    start: float = 0.0,
    end: float | None = None,
) -> Frames:
    """uint8 (count, height, width, 3), uniformly spaced in time from ``start`` to ``end`` (s).

    A film has a clock of its own; other sequences last as long as the sound, ``seconds``. What a file is, its content
    says before its ending.
    """
    part = WHOLE if end is None else (start / seconds, end / seconds)
    path, suffix = files[0].path, files[0].path.suffix.lower()
    if len(files) > 1:
        chosen = (files[position] for position in spread(count, len(files), part))
        return stack_frames(path.parent, [read_image(file.path, file.read()) for file in chosen])
    if suffix == ".npy":
        return _frame_array(files[0], count, part)
    content = files[0].read()
    head = content[:HEAD_BYTES]
    if looks_like_picture(head) or (suffix in IMAGE_SUFFIXES and not is_film(head)):
        return read_frames(path, count, content, part)
    return read_video_frames(path, count, start=start, end=end, hold=end is not None, data=content)


def _frame_array(file: MediaFile, count: int, part: Part) -> Frames:
    frames = _load_array(file)
    if frames.ndim == 3 and frames.shape[-1] != 3:  # (height, width, 3) would be a single colour frame
        frames = np.repeat(frames[..., None], 3, axis=-1)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0 or frames.dtype != np.uint8:
        raise DataError(
            f"{file.path}: is {frames.dtype} {frames.shape}: store uint8 of shape (time, height, width[, 3])",
            FORM,
        )
    return frames[spread(count, len(frames), part)]


def _load_array(file: MediaFile) -> npt.NDArray[Any]:
    content = file.read()
    try:
        array = np.load(BytesIO(content), allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, so that damage there raises anything
        raise DataError(
            f"{file.path}: is no readable .npy array: save it again with numpy.save", UNDECODABLE
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file.path}: holds several arrays: save one with numpy.save")
    return array
