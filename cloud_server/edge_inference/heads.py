"""The cloud's half of edge inference: for every student version, one head per compression rate.

``VERSION.safetensors`` beside ``VERSION.json`` in one folder, written once and never changed; the service keeps the
heads that were used last in memory. Rate 1 is the student's own joint head, any other rate the head that was
trained with that rate's compressor (Algorithm 8).
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fedstill.common.atomic_files import replace_file
from fedstill.models.audiovisual.compression import MODALITIES, RATES, CompressionNet, compressed_width
from fedstill.models.audiovisual.fusion import Fusion, fusion_head
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.weights.packing import load_packed, pack

FORMAT = 1
HEADS_FOLDER = "heads"
"""Within the coordinator's folder."""
VERSION = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_-]{0,127}")
CAPACITY = 64


class HeadError(ValueError):
    """The heads cannot be used; one line."""


class UnknownVersion(HeadError):
    """There are no heads of this student version."""


@dataclass(frozen=True)
class Heads:
    """Everything that the cloud needs to classify for one student version."""

    version: str
    class_names: tuple[str, ...]
    feature_width: int
    by_rate: Mapping[float, nn.Module]

    @torch.inference_mode()
    def probabilities(self, rate: float, audio: Tensor, visual: Tensor) -> Tensor:
        """float32 (n, compressed width) each -> float32 (n, classes)."""
        head = self.by_rate[rate]
        logits = head(audio, visual) if rate == 1 else head(torch.cat([audio, visual], dim=1))
        return torch.softmax(logits, dim=1)


def save_heads(
    directory: Path,
    version: str,
    net: AudioVisualNet,
    levels: Mapping[float, CompressionNet],
    class_names: tuple[str, ...],
) -> None:
    """Keep the heads of a student: its joint head, and the head of every compression rate. The JSON is written last.

    Args:
        version: hash of the student's weights; names the files.
        net: the student.
        levels: trained compressors and heads by rate; some may be missing, since devices learn which rates exist.
        class_names: order of the logits.

    Raises:
        HeadError: a version that is not a plain name, an unknown rate, a head of another shape.
    """
    _check_version(version)
    spec = net.spec
    if len(class_names) != spec.classes:
        raise HeadError(f"class_names: {len(class_names)} names for {spec.classes} outputs")
    parts: dict[str, nn.Module] = {_name(1.0): net.head.joint}
    for rate, level in levels.items():
        if rate not in RATES:
            raise HeadError(f"levels: rate {rate:g} is not one of {', '.join(f'{one:g}' for one in RATES)}")
        if rate != 1:
            parts[_name(rate)] = level.head
    described = {
        "format": FORMAT,
        "class_names": list(class_names),
        "feature_width": spec.feature_width,
        "fusion": spec.fusion,
        "rates": sorted({1.0, *levels}),
    }
    _heads_from(
        version, described, pack(nn.ModuleDict(parts).state_dict())
    )  # refuse heads that could not be read back
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / f"{version}.safetensors", pack(nn.ModuleDict(parts).state_dict()).tobytes())
    replace_file(directory / f"{version}.json", json.dumps(described, indent=1).encode())


class HeadStore:
    """The heads in a folder, the most recently used ones in memory; safe to use from several threads."""

    def __init__(self, directory: Path, capacity: int = CAPACITY) -> None:
        self.directory = directory
        self._capacity = capacity
        self._loaded: OrderedDict[str, Heads] = OrderedDict()
        self._lock = threading.Lock()

    def loaded(self, version: str) -> Heads | None:
        """The heads if they are in memory, without touching the disk."""
        with self._lock:
            if version not in self._loaded:
                return None
            self._loaded.move_to_end(version)
            return self._loaded[version]

    def get(self, version: str) -> Heads:
        """The heads of a student version.

        Raises:
            UnknownVersion: there are none.
            HeadError: they are damaged.
        """
        _check_version(version)
        if (known := self.loaded(version)) is not None:
            return known
        heads = self._load(version)
        with self._lock:
            self._loaded[version] = heads
            while len(self._loaded) > self._capacity:
                self._loaded.popitem(last=False)
        return heads

    def _load(self, version: str) -> Heads:
        path = self.directory / f"{version}.json"
        try:
            described = json.loads(path.read_text())
            blob = np.frombuffer((self.directory / f"{version}.safetensors").read_bytes(), np.uint8)
        except FileNotFoundError as error:
            raise UnknownVersion(f"student_version: {version} is not known here") from error
        except ValueError as error:
            raise HeadError(f"{path}: damaged ({error})") from error
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise HeadError(f"{path}: not heads of format {FORMAT}")
        return _heads_from(version, described, blob)


def _heads_from(version: str, described: dict[str, Any], blob: np.ndarray) -> Heads:
    try:
        names, width = tuple(map(str, described["class_names"])), int(described["feature_width"])
        fusion, rates = described["fusion"], tuple(map(float, described["rates"]))
        if fusion not in get_args(Fusion) or 1.0 not in rates:
            raise ValueError(f"fusion {fusion!r}, rates {rates}")
        heads: dict[float, nn.Module] = {
            rate: nn.Linear(MODALITIES * compressed_width(width, rate), len(names))
            if rate != 1
            else fusion_head(fusion, width, len(names))
            for rate in rates
        }
        load_packed(nn.ModuleDict({_name(rate): head for rate, head in heads.items()}), blob)
    except (ValueError, TypeError, KeyError) as error:
        raise HeadError(f"heads of {version}: unusable ({error})") from error
    return Heads(version, names, width, {rate: head.eval() for rate, head in heads.items()})


def _name(rate: float) -> str:
    """Module names have no dots: 1.5 is ``rate1_5``."""
    return f"rate{rate:g}".replace(".", "_")


def _check_version(version: str) -> None:
    if not VERSION.fullmatch(version):
        raise UnknownVersion("student_version: not a hash")
