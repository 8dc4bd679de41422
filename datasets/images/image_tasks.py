"""Image classification tasks for the serving tier: a folder or a zip per task, read without unpacking.

The layout is the one that image tools share, SPLIT/CLASS/IMAGE. A task comes with training and test images. The
validation images, used to choose prompts, regularisation and token schedules, are held out of the training images, by
class and from a seed. So nothing is ever chosen on the test set.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import ConfigError
from fedstill.common.paths import data_path
from fedstill.datasets.audiovisual.clip import EMOTIONS, DataError
from fedstill.datasets.audiovisual.image_files import IMAGE_SUFFIXES, REPLACE, Frames, read_image

Split = Literal["train", "val", "test"]
Labels = npt.NDArray[np.int64]

VALIDATION_SHARE = 0.2
"""Of the training images, as the thesis' profiling set (Section 3.6)."""


@dataclass(frozen=True, slots=True)
class KnownTask:
    """A task of the data folder: ``path`` below that folder, and its peculiarities."""

    path: str
    train: str = "train"
    test: str = "test"
    class_names: tuple[str, ...] | None = None


KNOWN_TASKS: Mapping[str, KnownTask] = {
    "cifar10": KnownTask("image_tasks/cifar10.zip"),
    "tinyimagenet100": KnownTask("image_tasks/tinyimagenet100.zip"),
    "mnist": KnownTask("image_tasks/mnist.zip"),
    "emotion_faces": KnownTask("emotion_pairs/fer2013_faces.zip", "public", "private", EMOTIONS),
}
"""Their class order is the sorted one, but for the emotions."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images, uint8 RGB (height, width, 3) each, and int64 labels (images,)."""

    images: tuple[Frames, ...]
    labels: Labels

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageTask:
    """A task's list of images; ``load`` decodes.

    Attributes:
        name: of the task.
        place: folder or zip.
        class_names: in label order.
        train_files, test_files: (path inside ``place``, label), sorted.
    """

    name: str
    place: Path
    class_names: tuple[str, ...]
    train_files: tuple[tuple[str, int], ...]
    test_files: tuple[tuple[str, int], ...]

    def load(self, split: Split, limit: int | None = None, seed: int = 0) -> ImageSet:
        """Decode a split.

        Args:
            split: ``train`` and ``val`` share the training images, 4 to 1 in every class.
            limit: at most so many images, as equally many of each class as there are; all by default.
            seed: decides which images are ``val`` and which a limit takes. Test images do not depend on it
                unless there is a limit.

        Raises:
            DataError: an unreadable image, or a split without images.
        """
        files = self._split(split, seed)
        if limit is not None:
            files = [files[i] for i in _even([label for _, label in files], limit, seed)]
        if not files:
            raise DataError(f"{self.place}: has no images to {split} on: add more to every class")
        labels = np.array([label for _, label in files], dtype=np.int64)
        return ImageSet(tuple(self._read([name for name, _ in files])), labels)

    def _split(self, split: Split, seed: int) -> list[tuple[str, int]]:
        if split == "test":
            return list(self.test_files)
        labels = np.array([label for _, label in self.train_files])
        held_out = np.zeros(len(labels), dtype=bool)
        rng = np.random.default_rng(seed)
        for label in range(len(self.class_names)):
            mine = rng.permutation(np.flatnonzero(labels == label))
            held_out[mine[: round(VALIDATION_SHARE * len(mine))]] = True
        wanted = held_out if split == "val" else ~held_out
        return [file for file, take in zip(self.train_files, wanted, strict=True) if take]

    def _read(self, names: Sequence[str]) -> list[Frames]:
        if self.place.is_dir():
            return [read_image(self.place / name) for name in names]
        try:
            with ZipFile(self.place) as archive:
                return [read_image(self.place / name, archive.read(name)) for name in names]
        except (OSError, BadZipFile, RuntimeError, zlib.error) as error:  # Runtime: encrypted
            raise DataError(f"{self.place}: cannot be read ({error}): {REPLACE}") from error

    @cached_property
    def counts(self) -> dict[str, int]:
        """Images by split name, before any limit (``val`` is counted among ``train``)."""
        return {"train": len(self.train_files), "test": len(self.test_files)}


def open_known_task(name: str, place: Path) -> ImageTask:
    """One of KNOWN_TASKS, from the data folder. Raises DataError for another name, and as ``open_image_task``."""
    known = KNOWN_TASKS.get(name)
    if known is None:
        raise DataError(f"image task {name!r} is not known: use {', '.join(KNOWN_TASKS)}, or give a path")
    return open_image_task(name, place, known.train, known.test, known.class_names)


def open_image_task(
    name: str,
    place: Path,
    train: str = "train",
    test: str = "test",
    class_names: Sequence[str] | None = None,
) -> ImageTask:
    """List the images of a folder or zip in the layout SPLIT/CLASS/IMAGE.

    Args:
        train, test: names of the split folders.
        class_names: in label order; by default the class folders of ``train``, sorted.

    Raises:
        DataError: no such place, a missing split, fewer than two classes, a class without training images,
            a folder that is not a class.
    """
    found: dict[str, dict[str, list[str]]] = {train: {}, test: {}}
    for file in _list(place):
        parts = file.split("/")
        if len(parts) == 3 and parts[0] in found and Path(file).suffix.lower() in IMAGE_SUFFIXES:
            found[parts[0]].setdefault(parts[1], []).append(file)
    for split, classes in found.items():
        if not classes:
            raise DataError(f"{place}: has no images in {split}/CLASS/: lay them out as SPLIT/CLASS/IMAGE")
    names = tuple(class_names or sorted(found[train]))
    if len(names) < 2:
        raise DataError(f"{place}: has one class, {names[0]}: a task needs at least two")
    for split, classes in found.items():
        strange = sorted(set(classes) - set(names))
        if strange:
            raise DataError(f"{place}: {split}/{strange[0]} is not a class of this task: remove or rename it")
    empty = [label for label in names if label not in found[train]]
    if empty:
        raise DataError(f"{place}: {train}/{empty[0]} has no images: add some")
    listed = {
        split: tuple(
            (file, label)
            for label, class_name in enumerate(names)
            for file in sorted(classes.get(class_name, ()))
        )
        for split, classes in found.items()
    }
    return ImageTask(name, place, names, listed[train], listed[test])


def _list(place: Path) -> list[str]:
    """All files, as paths with slashes below ``place``."""
    if place.is_dir():
        return [file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()]
    try:
        with ZipFile(place) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such folder or zip: check the path") from error
    except (OSError, BadZipFile) as error:
        raise DataError(f"{place}: is not a readable zip ({error}): {REPLACE}") from error


def _even(labels: Sequence[int], limit: int, seed: int) -> list[int]:
    """Positions of at most ``limit`` items, taken from the classes in turn, in ascending order."""
    if limit < 1:
        raise DataError(f"limit: {limit} images are none: give at least 1")
    rng = np.random.default_rng(seed)
    array = np.array(labels)
    turns = np.zeros(len(array), dtype=np.int64)
    for label in np.unique(array):
        mine = rng.permutation(np.flatnonzero(array == label))
        turns[mine] = np.arange(len(mine))
    first = np.lexsort((rng.permutation(len(array)), turns))[:limit]
    return sorted(int(position) for position in first)


def find_images(name: str, place: Path | None) -> ImageTask:
    """A task's images: from the user's path, or from the data folder. Raises ConfigError, DataError."""
    if place is not None:
        return open_image_task(name, place)
    if name not in KNOWN_TASKS:
        known = ", ".join(KNOWN_TASKS)
        raise ConfigError(f"{name}: is not a known task ({known}); give --images with its folder or zip")
    return open_known_task(name, data_path(KNOWN_TASKS[name].path))
