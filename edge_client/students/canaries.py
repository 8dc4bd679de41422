"""The canary clips that a device keeps, so that they travel once instead of with every student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from fedstill.common.atomic_files import PRIVATE, locked, remove_parts, replace_file
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students.students import NotInStore
from fedstill.models.weights.canaries import Canaries
from fedstill.protos.messages import InstallRequest, WireError


def canaries_of(request: InstallRequest, folder: Path) -> Canaries:
    """The clips that an installation means: those in the request, which are kept in ``folder``, or those kept there.

    Raises:
        NotInStore: the request holds none, and they are missing from the folder or damaged there.
        WireError: the clips are not those that the request names.
        DeviceError: the disk is full or cannot be written.
    """
    path = folder / f"{request.canaries}.safetensors"
    try:
        with locked(folder):
            if not len(request.audio):
                return _kept(path, request.canaries)
            clips = Canaries(request.audio, request.frames, request.teacher)
            if clips.version != request.canaries:
                raise WireError(
                    f"canaries: these clips are {clips.version[:12]}, not {request.canaries[:12]}"
                )
            tensors: dict[str, npt.NDArray[Any]] = {
                "audio": clips.audio,
                "frames": clips.frames,
                "teacher": clips.teacher,
            }
            replace_file(path, safetensors.numpy.save(tensors), PRIVATE)
            for other in folder.glob("*.safetensors"):
                if other != path:
                    other.unlink()
            remove_parts(folder)
    except OSError as error:
        raise DeviceError(f"canaries: {error.strerror or error} in the device's folder") from error
    return clips


def _kept(path: Path, version: str) -> Canaries:
    try:
        found = safetensors.numpy.load(path.read_bytes())
        clips = Canaries(found["audio"], found["frames"], found["teacher"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        raise NotInStore("canaries", version) from None
    if clips.version != version:
        raise NotInStore("canaries", version)
    return clips
