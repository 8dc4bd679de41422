"""A student with batch norm statistics of its device's own clips, where these show all classes.

The weights are the cloud's, under their version. The statistics are computed here, never travel, and lie in a file
beside the student: of whose clips, and whether they are used. They are used if, of the clips that the student then
decides, every class gets a part of an equal share that the cloud names. With half of the classes, statistics of a
device's own clips would spread them over all classes. Nothing here needs torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from fedstill.common.atomic_files import PRIVATE, remove_parts, replace_file
from fedstill.edge_client.folder import SHELF_FOLDER, STATISTICS_FOLDER
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students.pointer import student_file
from fedstill.edge_client.students.runtime_api import DeviceRuntime
from fedstill.edge_client.students.students import ModelStore, StoredModel
from fedstill.models.audiovisual.own_clips import FEWEST_CLIPS, STATISTICS, least_share

log = logging.getLogger(__name__)

TRIED = ".tried.safetensors"

Clips = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""(audio (n, bins, steps), frames (n, count, channels, size, size))"""
MakeRuntime = Callable[[StoredModel], DeviceRuntime]


@dataclass(frozen=True)
class Wish:
    """See ``messages.Student``: ``own_statistics``, above 0, and ``least_share``."""

    weight: float
    least_share: float


def adapted(
    folder: Path,
    student: StoredModel,
    wish: Wish,
    told: tuple[str, ...],
    clips: Callable[[], Clips],
    make: MakeRuntime,
) -> StoredModel:
    """The student as this device would use it; ``settle`` keeps its statistics for ``installed``.

    Args:
        folder: the device's.
        told: what tells the clips, of which the statistics are, from others.
        clips: reads them; asked only if their statistics are not known yet.
        make: makes a runtime of a student.

    Raises:
        OtherNetwork: this device has no means to compute statistics of such a student.
        DeviceError: the disk is full or cannot be written.
    """
    made_of = sha256("\n".join((repr(wish), *told)).encode()).hexdigest()
    tried = _tried(folder, student.version)
    kept = _read(tried)
    if kept is None or kept.made_of != made_of:
        found = _found(student, wish, clips(), make)
        log.info("own statistics student=%s used=%s", student.version[:12], bool(found))
        _keep(tried, found, made_of)
    return _with(student, tried)


def settle(folder: Path, version: str, own: bool) -> None:
    """A student of this version is to be installed, with the statistics of ``adapted``, or as it is.

    Raises:
        DeviceError: the disk is full or cannot be written.
    """
    path, tried = _path(folder, version), _tried(folder, version)
    try:
        if own:
            tried.replace(path)
        elif path.is_file():  # whatever else is in its place is not used
            path.unlink()
        if path.parent.exists():
            remove_parts(path.parent)
        for other in path.parent.glob("*.safetensors"):
            version_of = other.name.removesuffix(TRIED).removesuffix(".safetensors")
            if other != path and not student_file(folder / SHELF_FOLDER, version_of).exists():
                other.unlink(missing_ok=True)
    except OSError as error:
        raise DeviceError(f"statistics: {error.strerror or error} in the device's folder") from error


def student_in_use(folder: Path) -> StoredModel | None:
    """The device's, as it answers clips; None before the first installation. Raises DeviceError: see ``ModelStore``."""
    current = ModelStore(folder / SHELF_FOLDER).current()
    return None if current is None else installed(folder, current)


def installed(folder: Path, student: StoredModel) -> StoredModel:
    """The student with the statistics that it was installed with, if there are any that fit."""
    return _with(student, _path(folder, student.version))


def _with(student: StoredModel, path: Path) -> StoredModel:
    kept = _read(path)
    if kept is None or not kept.statistics:
        return student
    if not all(
        name in student.state and _alike(value, student.state[name])
        for name, value in kept.statistics.items()
    ):
        log.warning("statistics of another network student=%s", student.version[:12])
        return student
    return replace(student, state={**student.state, **kept.statistics})


def stamp(folder: Path, version: str) -> int:
    """Another number when the statistics of this version have become others; 0 without any."""
    try:
        return _path(folder, version).stat().st_mtime_ns
    except OSError:
        return 0


def _found(
    student: StoredModel, wish: Wish, clips: Clips, make: MakeRuntime
) -> dict[str, npt.NDArray[np.float32]]:
    """The statistics of the clips; none if these are not of all classes."""
    audio, frames = clips
    if len(audio) < FEWEST_CLIPS:
        return {}
    statistics = make(student).statistics(audio, frames, wish.weight)
    if not statistics or not _are_statistics(statistics):
        return {}
    runtime = make(replace(student, state={**student.state, **statistics}))
    decided = runtime.logits(runtime.features(audio, frames)).argmax(axis=1)
    return statistics if least_share(decided, len(student.class_names)) >= wish.least_share else {}


@dataclass(frozen=True)
class _Kept:
    """Statistics, none if they are not used, and of which clips and for which wish they are."""

    made_of: str
    statistics: dict[str, npt.NDArray[np.float32]]


def _keep(path: Path, found: Mapping[str, npt.NDArray[np.float32]], made_of: str) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        about = {"made_of": made_of, "digest": _digest(found)}
        replace_file(path, safetensors.numpy.save(dict(found), about), PRIVATE)
    except OSError as error:
        raise DeviceError(f"statistics: {error.strerror or error} in the device's folder") from error


def _read(path: Path) -> _Kept | None:
    """None if there is no file, or not what was written."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("statistics unreadable file=%s reason=%r", path.name[:12], str(error))
        return None
    try:
        found = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        made_of, digest = str(about["made_of"]), about["digest"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("statistics damaged file=%s reason=%r", path.name[:12], str(error))
        return None
    if digest != _digest(found):
        log.warning("statistics damaged file=%s: the content is not what was written", path.name[:12])
        return None
    return _Kept(made_of, found)


def _digest(found: Mapping[str, npt.NDArray[np.float32]]) -> str:
    whole = sha256()
    for name in sorted(found):
        whole.update(name.encode() + b"\0" + found[name].tobytes())
    return whole.hexdigest()


def _alike(value: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return value.shape == other.shape and value.dtype == other.dtype and bool(np.isfinite(value).all())


def _are_statistics(found: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Of a runtime: nothing but means and variances, and no variance below 0."""
    mean, variance = STATISTICS
    return all(
        name.endswith(mean) or (name.endswith(variance) and bool((value >= 0).all()))
        for name, value in found.items()
    )


def _path(folder: Path, version: str) -> Path:
    return folder / STATISTICS_FOLDER / f"{version}.safetensors"


def _tried(folder: Path, version: str) -> Path:
    """Of a student that is not installed yet."""
    return folder / STATISTICS_FOLDER / f"{version}{TRIED}"
