"""What a folder or a zip of images holds: every file once, system files aside, and which have the same content."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from zipfile import ZipFile

from fedstill.common.errors import DataError
from fedstill.datasets.files.file_names import is_system_file, readable
from fedstill.datasets.files.picture_formats import HEAD_BYTES, IMAGE_SUFFIXES, looks_like_picture
from fedstill.datasets.files.zips import open_zip, reading

MOST_BYTES = 2**29
"""Of a file that is read whole: a small entry of a zip may unpack to terabytes."""


@dataclass(frozen=True)
class Listing:
    """Paths below the place as they are stored there; ``readable`` shows them.

    Attributes:
        files: sorted.
        folders: with a slash, or in a zip perhaps a backslash, at the end.
        repeated: how many entries of a zip are there again under the same name.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    repeated: int = 0


def list_files(place: Path) -> Listing:
    """All files of a folder (links are followed) or a zip, but system files. Raises DataError."""
    if place.is_dir():
        return _list_folder(place)
    with open_zip(place) as archive:
        names = [(readable(name), name) for name in archive.namelist() if not is_system_file(name)]
    files = [both for both in names if not both[0].endswith("/")]
    folders = tuple(name for shown, name in names if shown.endswith("/"))
    once = sorted(dict(files).values())
    return Listing(tuple(once), folders, len(files) - len(once))


def _list_folder(place: Path) -> Listing:
    files: list[str] = []
    folders: list[str] = []
    seen: set[str] = set()
    for here, inside, names in os.walk(place, onerror=partial(_refuse, place), followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back up
            inside.clear()
            continue
        seen.add(real)
        inside.sort()
        paths = [Path(here, name).relative_to(place).as_posix() for name in names]
        files += [path for path in paths if not is_system_file(path)]
        folders += [f"{Path(here, name).relative_to(place).as_posix()}/" for name in inside]
    return Listing(tuple(sorted(files)), tuple(folder for folder in folders if not is_system_file(folder)))


def _refuse(place: Path, error: OSError) -> None:
    raise DataError(f"{place}: a folder cannot be listed ({error}): check who may read it") from error


def pictures_among(place: Path, names: Sequence[str]) -> set[str]:
    """Those with the ending of a picture, and those that begin like one whatever their ending."""
    found = {name for name in names if Path(readable(name)).suffix.lower() in IMAGE_SUFFIXES}
    others = [name for name in names if name not in found]
    if not others:
        return found
    with reader(place) as read:
        return found | {name for name in others if looks_like_picture(read(name, HEAD_BYTES))}


def same_content(place: Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of files that are equal byte by byte."""
    by_size: dict[tuple[int, ...], list[str]] = defaultdict(list)
    if place.is_dir():
        for name in names:
            by_size[((place / name).stat().st_size,)].append(name)
    else:
        with open_zip(place) as archive:
            for name in names:
                info = archive.getinfo(name)
                by_size[info.file_size, info.CRC].append(name)
    candidates = [name for alike in by_size.values() if len(alike) > 1 for name in alike]
    if not candidates:
        return []
    groups: dict[bytes, list[str]] = defaultdict(list)
    with reader(place) as read:
        for name in candidates:
            groups[blake2b(read(name, None), digest_size=16).digest()].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


@contextmanager
def reader(place: Path) -> Iterator[Callable[[str, int | None], bytes]]:
    """A function that reads a file of ``place``, or so many bytes from its beginning. It raises DataError."""
    if place.is_dir():
        yield partial(_read_file, place)
        return
    with open_zip(place) as archive:
        yield partial(_read_member, place, archive)


def _read_file(folder: Path, name: str, count: int | None) -> bytes:
    with reading(folder / readable(name)):
        _check_size((folder / name).stat().st_size, count)
        with (folder / name).open("rb") as file:
            return file.read(-1 if count is None else count)


def _read_member(place: Path, archive: ZipFile, name: str, count: int | None) -> bytes:
    with reading(place / readable(name)):
        _check_size(archive.getinfo(name).file_size, count)
        with archive.open(name) as file:
            return file.read(-1 if count is None else count)


def _check_size(size: int, count: int | None) -> None:
    if count is None and size > MOST_BYTES:
        raise OSError(f"{size} bytes are more than {MOST_BYTES}")
