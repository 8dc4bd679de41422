"""Where the files of a manifest are: below its root, or in a zip there that stands for a top-level folder.

A path that leads out of the root is refused unless the owner allows it: a manifest that somebody else wrote must not
make a device read its other files.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from fedstill.common.errors import DataError
from fedstill.datasets.files.faults import EMPTY, FOLDER, MISSING, fault_of
from fedstill.datasets.files.file_names import REPLACE, readable
from fedstill.datasets.files.picture_formats import in_natural_order
from fedstill.datasets.files.zips import open_zip, reading


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A file, or the ``member`` of a zip. Messages show ``path``."""

    path: Path
    archive: Path | None = None
    member: str = ""

    def read(self) -> bytes:
        """The file's bytes. Raises DataError, also if there are none."""
        with reading(self.path):
            if self.archive is None:
                content = self.path.read_bytes()
            else:
                content = _shared_zip(self.archive, os.getpid()).read(self.member)
        if not content:
            raise DataError(f"{self.path}: is empty: {REPLACE}", EMPTY)
        return content


def find_file(root: Path, text: str, *, outside: bool = False) -> MediaFile | None:
    """The file that a cell names: relative to ``root``, or absolute but below it.

    Windows' backslashes are slashes, unless a file has one in its name. Accented letters may be composed or not.

    Args:
        root: what the path is relative to.
        text: the cell.
        outside: whether the path may lead out of ``root``.

    Raises:
        DataError: the path leads out of ``root``, or cannot be one.
    """
    for path in _spellings(root, text, outside):
        if _is(Path.is_file, root / path):
            return MediaFile(root / path)
        for archive, member in _zip_places(root, path):
            stored = _zip_files(archive).get(readable(str(member)))
            if stored is not None:
                return MediaFile(root / path, archive, stored)
    return None


def find_frames(root: Path, text: str, *, outside: bool = False) -> tuple[MediaFile, ...]:
    """One file, or the images of a folder in natural order, or nothing. Arguments and errors as of ``find_file``."""
    file = find_file(root, text, outside=outside)
    if file is not None:
        return (file,)
    for path in _spellings(root, text, outside):
        folder = root / path
        if _is(Path.is_dir, folder):
            with reading(folder):
                names = in_natural_order(map(str, folder.iterdir()))
            return tuple(MediaFile(Path(name)) for name in names)
        for archive, member in _zip_places(root, path):
            stored = _zip_folders(archive).get(readable(str(member)), {})
            images = in_natural_order(stored)
            if images:
                return tuple(MediaFile(folder / name, archive, stored[name]) for name in images)
    return ()


def place_in(root: Path, path: Path) -> str:
    """A file's path as a name: relative to ``root`` if it lies below, else absolute."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def near_miss(root: Path, text: str) -> str:
    """What lies below ``root`` under nearly the same path, but for capital letters; empty if nothing does.

    For a message about a path that was not found: Windows and macOS do not tell ``A.WAV`` from ``a.wav``.
    """
    found = _walk(root, text, str.casefold)
    return "" if found is None else place_in(root, found)


def _walk(root: Path, text: str, form: Callable[[str], str]) -> Path | None:
    """What lies below ``root`` under a path whose parts have the same ``form`` as those of ``text``."""
    place = root
    for part in PurePosixPath(readable(text)).parts:
        try:
            names = _names_by_letters(place, place.stat().st_mtime_ns).get(part.casefold(), [])
        except OSError:
            return None
        found = [name for name in names if form(readable(name)) == form(part)]
        if not found:
            return None
        place /= part if part in found else min(found)
    return place


@lru_cache(maxsize=16)
def _names_by_letters(folder: Path, _changed: int) -> dict[str, list[str]]:
    """The names in a folder by their form without capitals; a changed folder is listed again."""
    names: dict[str, list[str]] = {}
    for entry in folder.iterdir():
        names.setdefault(readable(entry.name).casefold(), []).append(entry.name)
    return names


def fault_of_path(root: Path, text: str, *, outside: bool = False) -> str:
    """Why a cell names no media: a folder is in their place, or nothing."""
    found = any(_is(Path.is_dir, root / path) for path in _spellings(root, text, outside))
    return FOLDER if found else MISSING


def _spellings(root: Path, text: str, outside: bool) -> Iterator[PurePosixPath]:
    """The paths below ``root`` that a cell may mean, as written first; absolute ones if it leads elsewhere."""
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        raise DataError(
            f"path {text} is of a Windows computer: write it relative to {root}, such as sound/a.wav"
        )
    texts = (text, text.replace("\\", "/"))
    forms = [unicodedata.normalize(form, one) for form in ("NFC", "NFD") for one in texts]
    spellings = [_below(root, spelling, outside) for spelling in dict.fromkeys((*texts, *forms))]
    yield from spellings
    if not text.isascii():  # each folder on the way may have a form of its own
        found = _walk(root, str(spellings[0]), str)
        if found is not None:
            yield PurePosixPath(found.relative_to(root))


def _below(root: Path, text: str, outside: bool) -> PurePosixPath:
    path = PurePosixPath(text)
    if path.is_absolute() and ".." not in path.parts:
        for base, same in ((root.absolute(), path), (root.resolve(), path), (root.resolve(), _real(text))):
            if same.is_relative_to(base):
                return same.relative_to(base)
    if not path.is_absolute() and ".." not in path.parts:
        return path
    if not outside:
        raise DataError(
            f"path {text} leads out of {root}: use a path below it, without '..', set dataset.root, or give "
            "--allow-outside"
        )
    elsewhere = _real(str(root / path))
    return elsewhere.relative_to(root.resolve()) if elsewhere.is_relative_to(root.resolve()) else elsewhere


def _real(text: str) -> PurePosixPath:
    """The path without links and '..'."""
    try:
        return PurePosixPath(Path(text).resolve())
    except (OSError, RuntimeError):  # a circle of links
        return PurePosixPath(text)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise DataError(
            f"path {path} cannot be looked up ({error.strerror}): correct it", fault_of(error)
        ) from error


def _zip_places(root: Path, path: PurePosixPath) -> Iterator[tuple[Path, PurePosixPath]]:
    """Where in ``TOP.zip`` the path may be, if there is no folder TOP: without TOP in the zip, or with it."""
    if not path.parts or path.is_absolute():
        return
    archive = root / f"{path.parts[0]}.zip"
    if _is(Path.is_file, archive) and not (root / path.parts[0]).exists():
        yield archive, PurePosixPath(*path.parts[1:])
        yield archive, path


@lru_cache(maxsize=16)
def _shared_zip(archive: Path, process: int) -> ZipFile:
    """Threads may share a ZipFile, processes may not: its position in the file would be common to both."""
    return open_zip(archive)


@lru_cache(maxsize=16)
def _zip_files(archive: Path) -> dict[str, str]:
    """Readable path -> name in the zip."""
    return {readable(name): name for name in _shared_zip(archive, os.getpid()).namelist()}


@lru_cache(maxsize=16)
def _zip_folders(archive: Path) -> dict[str, dict[str, str]]:
    """Readable folder -> readable file name -> name in the zip."""
    folders: dict[str, dict[str, str]] = {}
    for path, name in _zip_files(archive).items():
        folders.setdefault(str(PurePosixPath(path).parent), {})[PurePosixPath(path).name] = name
    return folders
