"""The user's own clips as a dataset: a CSV with one row per clip, which names media files.

The whole table is checked before anything is decoded, and every bad row is named with its line and the
remedy, so that a training run never stops half-way over a typing error. A top-level folder may be a ``FOLDER.zip``
instead; it is read in place, without unpacking.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.clip import Clip, ClipInfo, DataError, Split
from fedstill.datasets.audiovisual.decode import read_audio, read_channels, read_video_frames
from fedstill.datasets.audiovisual.image_files import (
    IMAGE_SUFFIXES,
    REPLACE,
    Frames,
    in_natural_order,
    read_image,
    spread,
    stack_frames,
)

COLUMNS = ("clip_id", "split", "speaker", "label", "audio", "frames")


class ManifestSource:
    """The clips of a CSV as a ClipSource; safe to share between threads and processes.

    Columns: ``clip_id``, ``split`` (public or private), ``speaker``, ``label`` (a class name; empty if a private clip
    is not labelled), ``audio`` (sound file, video, or a ``.npy`` feature matrix of shape (features, time)) and
    ``frames`` (video, image, folder of images, or a uint8 ``.npy`` of shape (time, height, width) or (time, height,
    width, 3)). The column ``group`` is optional: clips with the same group are one recording; by default, those with
    the same ``audio``. Further columns are ignored (``sex`` is read by ``speaker_sexes``).

    Args:
        csv_path: UTF-8, with a header.
        root: what the paths are relative to; the CSV's folder by default.
        class_names: kept in this order; by default all labels in the table, sorted.
        frame_count: how many frames ``load`` takes, uniformly spaced in time; fewer are repeated in order.
        name: of the dataset; the name of the CSV's folder by default.

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
    ) -> None:
        self._rows, problems = _read_rows(csv_path, root, class_names)
        if problems:
            more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
            raise DataError(problems[0] + more)
        self._frame_count = frame_count
        self.name = name or csv_path.resolve().parent.name
        self.class_names = tuple(class_names or sorted({row.label for row in self._rows if row.label}))
        numbers = {label: number for number, label in enumerate(self.class_names)}
        self.index = tuple(
            ClipInfo(row.clip_id, row.split, row.speaker, numbers.get(row.label), row.group)
            for row in self._rows
        )

    @property
    def pictures(self) -> tuple[str, ...]:
        """What each clip shows, as the path of its (first) file; the same file may be beside several sounds."""
        return tuple(str(row.frames[0].path) for row in self._rows)

    def load(self, position: int) -> Clip:
        """Decode clip ``position``. Raises DataError naming the file and what to do."""
        row = self._rows[position]
        audio, sample_rate = _load_audio(row.audio)
        return Clip(self.index[position], audio, _load_frames(row.frames, self._frame_count), sample_rate)

    def load_channels(self, position: int) -> npt.NDArray[np.float32]:
        """float32 (channels, samples): the sound of clip ``position`` before it is mixed. Raises as ``load``."""
        file = self._rows[position].audio
        if file.path.suffix.lower() == ".npy":
            return _load_audio(file)[0]
        return read_channels(file.path, file.read())[0]


def manifest_problems(
    csv_path: Path, root: Path | None = None, class_names: Sequence[str] | None = None
) -> list[str]:
    """All problems of the table, one line each. Media files are checked for existence but not decoded."""
    try:
        return _read_rows(csv_path, root, class_names)[1]
    except DataError as error:
        return [str(error)]


def speaker_sexes(csv_path: Path) -> dict[str, str]:
    """The optional column ``sex`` by speaker, as written; without speakers of whom the table does not say it.

    Raises:
        DataError: the table cannot be read, or says two things of one speaker.
    """
    found: dict[str, str] = {}
    for line, cells in read_table(csv_path, ("speaker",)):
        sex, speaker = cells.get("sex", ""), cells["speaker"]
        if sex and found.setdefault(speaker, sex) != sex:
            raise DataError(
                f"{csv_path}, line {line}: sex of {speaker} is {sex!r} here, {found[speaker]!r} above"
            )
    return found


@dataclass(frozen=True, slots=True)
class _File:
    """A file, or the ``member`` of a zip. Messages show ``path``."""

    path: Path
    archive: Path | None = None
    member: str = ""

    def read(self) -> bytes:
        try:
            if self.archive is None:
                return self.path.read_bytes()
            return _open_zip(self.archive, os.getpid()).read(self.member)
        except (OSError, BadZipFile, RuntimeError, zlib.error) as error:  # Runtime: encrypted
            raise DataError(f"{self.path}: cannot be read ({error}): {REPLACE}") from error


@dataclass(frozen=True, slots=True)
class _Row:
    clip_id: str
    split: Split
    speaker: str
    label: str
    audio: _File
    frames: tuple[_File, ...]
    """One video, image or array, or the images of a folder in time order."""
    group: str
    """The ``group`` cell, or the ``audio`` cell as written."""


def _read_rows(
    csv_path: Path, root: Path | None, class_names: Sequence[str] | None
) -> tuple[tuple[_Row, ...], list[str]]:
    """The good rows, and one line about each bad one. Raises DataError if the whole table is unusable."""
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise DataError(f"the class list {', '.join(class_names)} names a class twice: name each once")
    rows: dict[str, _Row] = {}
    problems: list[str] = []
    for line, cells in read_table(csv_path, COLUMNS):
        try:
            row = _parse(cells, root or csv_path.parent, class_names)
            if row.clip_id in rows:
                raise DataError(f"clip_id {row.clip_id!r} is used twice: give every clip its own")
            rows[row.clip_id] = row
        except DataError as error:
            problems.append(f"{csv_path}, line {line}: {error}")
    if not rows and not problems:
        raise DataError(f"{csv_path}: has no clips: add one row per clip")
    return tuple(rows.values()), problems


def read_table(csv_path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each row of a CSV with a header; a byte order mark is ignored.

    Raises:
        DataError: no file, not UTF-8, one of ``columns`` is absent, or a row does not fit the header.
    """
    try:
        with csv_path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [column.strip() for column in next(reader, [])]
            missing = [column for column in columns if column not in header]
            if missing:
                raise DataError(f"{csv_path}: lacks column {', '.join(missing)}: use {','.join(columns)}")
            for cells in filter(None, reader):  # empty lines are skipped
                if len(cells) != len(header):
                    raise DataError(
                        f"{csv_path}, line {reader.line_num}: has {len(cells)} values, the header "
                        f"{len(header)}: quote values that contain a comma"
                    )
                yield reader.line_num, dict(zip(header, map(str.strip, cells), strict=True))
    except FileNotFoundError as error:
        raise DataError(f"{csv_path}: no such file: check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{csv_path}: is not a readable UTF-8 CSV ({error}): export it again") from error


def _parse(cells: dict[str, str], root: Path, class_names: Sequence[str] | None) -> _Row:
    """Raises DataError about the row; the caller adds file and line."""
    for column in ("clip_id", "speaker", "audio", "frames"):
        if not cells[column]:
            raise DataError(f"{column} is empty: fill it in or remove the row")
    label = cells["label"]
    match cells["split"]:
        case "public" | "private" as split:
            pass
        case other:
            raise DataError(f"split is {other!r}: write public or private")
    if not label and split == "public":
        raise DataError("label is empty: name the class; only private clips may be unlabelled")
    if label and class_names is not None and label not in class_names:
        raise DataError(f"label {label!r} is not a class: use one of {', '.join(class_names)}")
    audio = _find_file(root, cells["audio"])
    if audio is None:
        raise DataError(f"audio {cells['audio']} is not a file below {root}: correct the path or add it")
    frames = _find_frames(root, cells["frames"])
    if not frames:
        raise DataError(
            f"frames {cells['frames']} is neither a file nor a folder with images below {root}: "
            "correct the path or add them"
        )
    group = cells.get("group") or cells["audio"]
    return _Row(cells["clip_id"], split, cells["speaker"], label, audio, frames, group)


def _find_file(root: Path, relative: str) -> _File | None:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"path {relative} leads out of {root}: use a path below it, without '..'")
    if (root / path).is_file():
        return _File(root / path)
    for archive, member in _zip_places(root, path):
        if str(member) in _zip_files(archive):
            return _File(root / path, archive, str(member))
    return None


def _find_frames(root: Path, relative: str) -> tuple[_File, ...]:
    """One file, or the images of a folder in natural order, or nothing."""
    file = _find_file(root, relative)
    if file is not None:
        return (file,)
    folder = root / relative
    if folder.is_dir():
        return tuple(_File(Path(name)) for name in in_natural_order(map(str, folder.iterdir())))
    for archive, member in _zip_places(root, PurePosixPath(relative)):
        images = in_natural_order(_zip_folders(archive).get(str(member), ()))
        if images:
            return tuple(_File(folder / PurePosixPath(name).name, archive, name) for name in images)
    return ()


def _zip_places(root: Path, path: PurePosixPath) -> Iterator[tuple[Path, PurePosixPath]]:
    """Where in ``TOP.zip`` the path may be, if there is no folder TOP: without TOP in the zip, or with it."""
    archive = root / f"{path.parts[0]}.zip"
    if archive.is_file() and not (root / path.parts[0]).exists():
        yield archive, PurePosixPath(*path.parts[1:])
        yield archive, path


@lru_cache(maxsize=16)
def _open_zip(archive: Path, process: int) -> ZipFile:
    """Threads may share a ZipFile, processes may not: its position in the file would be common to both."""
    try:
        return ZipFile(archive)
    except (OSError, BadZipFile) as error:
        raise DataError(f"{archive}: is not a readable zip ({error}): {REPLACE}") from error


@lru_cache(maxsize=16)
def _zip_files(archive: Path) -> frozenset[str]:
    return frozenset(_open_zip(archive, os.getpid()).namelist())


@lru_cache(maxsize=16)
def _zip_folders(archive: Path) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for name in _zip_files(archive):
        folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
    return folders


def _load_audio(file: _File) -> tuple[npt.NDArray[np.float32], int]:
    """A waveform and its rate in Hz, or a feature matrix and 0."""
    if file.path.suffix.lower() != ".npy":
        return read_audio(file.path, file.read())
    features = _load_array(file)
    if features.ndim != 2 or features.size == 0 or not np.issubdtype(features.dtype, np.floating):
        raise DataError(
            f"{file.path}: is {features.dtype} {features.shape}: store floats of shape (features, time)"
        )
    if not np.isfinite(features).all():
        raise DataError(f"{file.path}: holds NaN or infinity: compute these features again")
    return features.astype(np.float32), 0


def _load_frames(files: tuple[_File, ...], count: int) -> Frames:
    """uint8 (count, height, width, 3)."""
    path, suffix = files[0].path, files[0].path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        chosen = (files[position] for position in spread(count, len(files)))
        return stack_frames(path.parent, [read_image(file.path, file.read()) for file in chosen])
    if suffix != ".npy":
        return read_video_frames(path, count, data=files[0].read())
    frames = _load_array(files[0])
    if frames.ndim == 3 and frames.shape[-1] != 3:  # (height, width, 3) would be a single colour frame
        frames = np.repeat(frames[..., None], 3, axis=-1)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0 or frames.dtype != np.uint8:
        raise DataError(
            f"{path}: is {frames.dtype} {frames.shape}: store uint8 of shape (time, height, width[, 3])"
        )
    return frames[spread(count, len(frames))]


def _load_array(file: _File) -> npt.NDArray[Any]:
    try:
        array = np.load(BytesIO(file.read()), allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{file.path}: is no readable .npy array: save it again with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file.path}: holds several arrays: save one with numpy.save")
    return array
