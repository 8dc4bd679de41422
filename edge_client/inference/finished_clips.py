"""What becomes of the files of an answered clip: they move into another folder, or they go."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from fedstill.edge_client.inference.watch_log import WatchError

Finish = Callable[[tuple[Path, ...]], None]
"""What becomes of the files of an answered clip."""


def archiving(folder: Path) -> Finish:
    """Moves answered clips into ``folder``; a name that is taken there gets a number. Raises WatchError."""
    if not folder.is_dir():
        raise WatchError(f"{folder}: is no folder: make it, or archive elsewhere")

    numbers: dict[str, int] = {}  # given to each name, so that a name that is used often costs no more

    def archive(files: tuple[Path, ...]) -> None:
        stem = files[0].stem
        number = 1
        while _is_taken(targets := [folder / _numbered(file, stem, number) for file in files]):
            number = numbers.get(stem, 1) + 1 if number == 1 else number + 1
            numbers[stem] = number
        _move_all(files, targets)

    return archive


def _is_taken(targets: Sequence[Path]) -> bool:
    return any(target.exists() for target in targets)


def _move_all(files: Sequence[Path], targets: Sequence[Path]) -> None:
    """All of them, or none: files of one clip stay together."""
    moved: list[tuple[Path, Path]] = []
    try:
        for file, target in zip(files, targets, strict=True):
            shutil.move(file, target)
            moved.append((file, target))
    except OSError:
        for file, target in moved:
            shutil.move(target, file)
        raise


def delete(files: tuple[Path, ...]) -> None:
    """Removes an answered clip."""
    for file in files:
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def _numbered(file: Path, stem: str, number: int) -> str:
    """The number comes behind what all files of a clip have in common: a folder has no ending, but may have dots."""
    return file.name if number == 1 else f"{stem}-{number}{file.name[len(stem) :]}"
