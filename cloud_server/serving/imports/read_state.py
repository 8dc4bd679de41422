"""Any weights file to named tensors, without running anything that is in it.

A ``.bin``, ``.pth`` or ``.pt`` is a pickle, which can name any function to be called. It is read by
``torch.load(weights_only=True)`` alone, which refuses all but tensors and plain containers.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fedstill.common.errors import DataError

LARGEST_BYTES = 8 * 2**30
"""Of a file, of what its archive unpacks to, and of its tensors: a ViT of two thousand million parameters in fp32."""
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".tar")
WEIGHTS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
"""Where training programs put the weights in a checkpoint; averaged ones first, as timm does."""
UNSUPPORTED = re.compile(r"GLOBAL ([\w.]+)")
KEPT = (torch.float32, torch.float16, torch.bfloat16)


class ImportFault(DataError):
    """The source cannot be imported; one line that says why."""


@dataclass(frozen=True)
class ReadState:
    """The tensors of a file.

    Attributes:
        state: on the CPU, dense, in a float type.
        sha256: of the file.
        place: of the weights in a checkpoint, such as ``state_dict``; empty if they are all of it.
        notes: the checkpoint's plain values, such as timm's ``arch``, and its training arguments.
    """

    state: dict[str, Tensor]
    sha256: str
    place: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


def read_state(path: Path) -> ReadState:
    """Read a safetensors file, or a pickle of weights.

    Raises:
        ImportFault: no such file, too large, damaged, or something else than weights.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise ImportFault(f"{path}: {size / 2**30:.1f} GiB are more than {LARGEST_BYTES / 2**30:.0f}")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix == ".safetensors":
            return ReadState(_weights_of(path, _safetensors(path)), sha256)
        if path.suffix not in PICKLES:
            known = ", ".join((".safetensors", *PICKLES))
            raise ImportFault(f"{path}: is none of {known}: weights of other kinds are not read")
        return _checkpoint(path, _unpickled(path), sha256)
    except OSError as error:
        raise ImportFault(f"{path}: cannot be read ({error.strerror or error}): check the path") from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ImportFault(f"{path}: is not a safetensors file ({str(error)[:80]})") from None


def _unpickled(path: Path) -> object:
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
        except (zipfile.BadZipFile, ValueError) as error:
            raise ImportFault(f"{path}: is damaged ({str(error)[:80]}): download or save it again") from None
        if unpacked > LARGEST_BYTES:
            raise ImportFault(f"{path}: unpacks to {unpacked / 2**30:.1f} GiB: too large")
    try:
        # timm's checkpoints hold their training arguments in this class, which does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        named = UNSUPPORTED.search(str(error))
        if named is not None:
            raise ImportFault(
                f"{path}: holds {named[1]}, which is not weights, and is not loaded: save model.state_dict() alone"
            ) from None
        raise ImportFault(f"{path}: is not a file of weights, or damaged: save model.state_dict()") from None
    return found


def _checkpoint(path: Path, found: object, sha256: str) -> ReadState:
    if not isinstance(found, Mapping):
        raise ImportFault(f"{path}: holds a {type(found).__name__}, not weights: save model.state_dict()")
    for place in WEIGHTS:
        inside = found.get(place)
        if isinstance(inside, Mapping) and any(isinstance(one, Tensor) for one in inside.values()):
            return ReadState(_weights_of(path, inside), sha256, place, _notes(found))
    return ReadState(_weights_of(path, found), sha256)


def _notes(checkpoint: Mapping[Any, Any]) -> dict[str, Any]:
    arguments = checkpoint.get("args")
    plain = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    return {**plain, **{key: value for key, value in checkpoint.items() if key == "arch"}}


def _weights_of(path: Path, found: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors in a float type; counters and plain values are no weights."""
    state, total = {}, 0
    for name, value in found.items():
        if isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point():
            if value.layout is not torch.strided or value.device.type != "cpu":
                raise ImportFault(f"{path}: {name[:80]} is not a dense tensor")
            total += value.numel() * 4
            state[name] = value.detach()
    if not state:
        raise ImportFault(f"{path}: holds no weights by name: save model.state_dict()")
    if total > LARGEST_BYTES:  # a tensor can be larger than what it is stored as
        raise ImportFault(f"{path}: {total / 2**30:.1f} GiB of weights are too many")
    return {name: value if value.dtype in KEPT else value.float() for name, value in state.items()}
