"""Image classification tasks for the serving tier: a folder or a zip per task, read without unpacking.

The layout is the one that image tools share, SPLIT/CLASS/IMAGE. A task comes with training and test images. The
validation images, used to choose prompts, regularisation and token schedules, are held out of the training images, by
class and from a seed. So nothing is ever chosen on the test set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import ConfigError, DataError
from fedstill.common.paths import data_path
from fedstill.datasets.audiovisual.clip import EMOTIONS
from fedstill.datasets.decoding.image_files import Frames, read_image
from fedstill.datasets.files.file_names import readable
from fedstill.datasets.images.listing import Listing, list_files, pictures_among, reader, same_content

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
        left_out: what else is there, one line per folder and kind of file, with its number and the reason.
        left_out_files: how many files these are.
    """

    name: str
    place: Path
    class_names: tuple[str, ...]
    train_files: tuple[tuple[str, int], ...]
    test_files: tuple[tuple[str, int], ...]
    left_out: tuple[str, ...] = ()
    left_out_files: int = 0

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
        places = {name: place for place, (name, _) in enumerate(self.train_files)}
        for group in self.same_pictures:  # the same picture in training and validation would flatter the task
            together = [places[name] for name in group if name in places]
            held_out[together] = held_out[together[:1]]
        wanted = held_out if split == "val" else ~held_out
        return [file for file, take in zip(self.train_files, wanted, strict=True) if take]

    def _read(self, names: Sequence[str]) -> list[Frames]:
        with reader(self.place) as read:
            return [read_image(self.place / readable(name), read(name, None)) for name in names]

    def with_classes(self, class_names: tuple[str, ...]) -> ImageTask:
        """The same images with labels in the order of other classes, of which some may have no images.

        class_names: empty for a task without classes of its own, whose images are judged by their own.

        Raises:
            DataError: a class of the images is not one of them.
        """
        if not class_names or class_names == self.class_names:
            return self
        places = {name: place for place, name in enumerate(class_names)}
        strange = [name for name in self.class_names if name not in places]
        if strange:
            raise DataError(
                f"{self.place}: {readable(strange[0])} is not a class of {self.name}: name its folders like "
                f"{', '.join(class_names[:3])}"
            )
        moved = [places[name] for name in self.class_names]
        files = [
            tuple((file, moved[label]) for file, label in split)
            for split in (self.train_files, self.test_files)
        ]
        return replace(self, class_names=class_names, train_files=files[0], test_files=files[1])

    @cached_property
    def same_pictures(self) -> list[tuple[str, ...]]:
        """Groups of files with the same content, among training and test images together."""
        return same_content(self.place, [name for name, _ in (*self.train_files, *self.test_files)])

    def per_class(self, files: Sequence[tuple[str, int]]) -> dict[str, int]:
        """How many of ``train_files`` or ``test_files`` each class has."""
        counts = Counter(label for _, label in files)
        return {name: counts[label] for label, name in enumerate(self.class_names)}

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

    Images may lie in folders below that of their class, and all may lie in one folder around them.

    Args:
        train, test: names of the split folders.
        class_names: in label order; by default the class folders of ``train``, sorted.

    Raises:
        DataError: no such place, a missing split, fewer than two classes, a class without training or test images,
            a folder that is not a class.
    """
    listing = list_files(place)
    around = _folder_around(listing, (train, test))
    pictures = pictures_among(place, listing.files)
    found: dict[str, dict[str, list[str]]] = {train: {}, test: {}}
    left_out: Counter[tuple[str, str, str]] = Counter()
    for folder in listing.folders:
        parts = _parts(folder, around)
        if len(parts) == 2 and parts[0] in found and not parts[1].startswith("."):
            found[parts[0]].setdefault(parts[1], [])
    for file in listing.files:
        parts = _parts(file, around)
        reason = _reason(parts, file in pictures, found)
        if reason:
            left_out["/".join(parts[:-1]), Path(parts[-1]).suffix, reason] += 1
        else:
            found[parts[0]].setdefault(parts[1], []).append(file)
    for split, classes in found.items():
        if not any(classes.values()):
            raise DataError(f"{place}: has no images in {split}/CLASS/: lay them out as SPLIT/CLASS/IMAGE")
    names = tuple(class_names or sorted(found[train]))
    if len(names) < 2:
        raise DataError(f"{place}: has one class, {names[0]}: a task needs at least two")
    for split, classes in found.items():
        strange = sorted(set(classes) - set(names))
        if strange:
            raise DataError(f"{place}: {split}/{strange[0]} is not a class of this task: remove or rename it")
    for split, classes in found.items():
        empty = [name for name in names if not classes.get(name)]
        if empty:
            raise DataError(f"{place}: {split}/{empty[0]} has no images: add some, or remove this class")
    listed = {
        split: tuple((file, label) for label, name in enumerate(names) for file in sorted(classes[name]))
        for split, classes in found.items()
    }
    said = [_said(*key, number) for key, number in sorted(left_out.items())]
    if listing.repeated:
        said.append(f"{listing.repeated} entries of the zip: there twice, the last one counts")
    skipped = sum(left_out.values()) + listing.repeated
    return ImageTask(name, place, names, listed[train], listed[test], tuple(said), skipped)


def _folder_around(listing: Listing, splits: Sequence[str]) -> str:
    """The one folder that everything is in, as when a whole folder was zipped; empty if there is none."""
    tops = {parts[0] for name in (*listing.files, *listing.folders) if (parts := _parts(name, ""))}
    return tops.pop() if len(tops) == 1 and not tops & set(splits) else ""


def _parts(file: str, around: str) -> list[str]:
    parts = [part for part in readable(file).split("/") if part not in ("", ".")]
    return parts[1:] if around and len(parts) > 1 else parts


def _reason(parts: Sequence[str], picture: bool, splits: Mapping[str, object]) -> str:
    """Why a file is none of the task's images; empty if it is one."""
    if parts[0] not in splits:
        return f"not below {' or '.join(splits)}"
    if len(parts) < 3:
        return "in no class's folder"
    if any(part.startswith(".") for part in parts):
        return "hidden"
    return "" if picture else "no picture"


def _said(folder: str, ending: str, reason: str, number: int) -> str:
    kind = f"*{ending}" if ending else "files without an ending"
    return f"{number} x {folder + '/' if folder else ''}{kind}: {reason}"


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
