"""The compressors of an installed student, kept in its device's folder: what the cloud-side heads expect to receive.

They are four small matrices per rate and the same for every runtime, so they are applied in numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.edge_client.students.runtime_api import DeviceRuntime, FeatureArrays
from fedstill.models.audiovisual.levels import RATES, compressed_width
from fedstill.protos.messages import WireError

Array = npt.NDArray[np.float32]
Compressor = Mapping[str, tuple[Array, Array]]
"""Modality -> weight (width, feature_width) and bias (width,)."""


def parse_compressors(content: bytes) -> dict[float, Compressor]:
    """Compressors by rate, from safetensors named ``1.5.audio.weight``.

    Raises:
        WireError: something else.
    """
    try:
        found = safetensors.numpy.load(content) if content else {}
    except (SafetensorError, ValueError) as error:
        raise WireError(f"compressors: not a safetensors block ({error})") from error
    compressors: dict[float, Compressor] = {}
    for rate in (rate for rate in RATES if f"{rate:g}.audio.weight" in found):
        parts: dict[str, tuple[Array, Array]] = {}
        for modality in FeatureArrays._fields:
            weight = found.pop(f"{rate:g}.{modality}.weight", None)
            bias = found.pop(f"{rate:g}.{modality}.bias", None)
            if weight is None or bias is None or not _fits(weight, bias, rate):
                raise WireError(
                    f"compressors: the {modality} layer of rate {rate:g} is missing or does not fit"
                )
            parts[modality] = (weight, bias)
        compressors[rate] = parts
    if found:
        raise WireError(f"compressors: {sorted(found)[0]} belongs to no rate")
    return compressors


def keep_compressors(folder: Path, version: str, content: bytes) -> None:
    """Keep a student's compressors beside the model store; the previous student's file stays, too."""
    parse_compressors(content)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(_path(folder, version), content, PRIVATE)


def read_compressors(folder: Path, version: str) -> dict[float, Compressor]:
    """The compressors of a version; none if there is no file, and then only rate 1 can be sent."""
    path = _path(folder, version)
    return parse_compressors(path.read_bytes()) if path.exists() else {}


class CompressedRuntime:
    """A runtime with the compressors of its student."""

    def __init__(self, inner: DeviceRuntime, compressors: Mapping[float, Compressor]) -> None:
        self._inner, self._compressors = inner, compressors
        self.class_names, self.version = inner.class_names, inner.version

    def features(self, audio: Array, frames: npt.NDArray[np.uint8]) -> FeatureArrays:
        """See ``runtime_api.Runtime``."""
        return self._inner.features(audio, frames)

    def logits(self, features: FeatureArrays) -> Array:
        """See ``runtime_api.Runtime``."""
        return self._inner.logits(features)

    def compress(self, features: FeatureArrays, rate: float) -> FeatureArrays:
        """Features at one rate; the identity at rate 1. Raises ValueError for a rate without a compressor."""
        if rate == 1:
            return features
        if rate not in self._compressors:
            raise ValueError(f"rate: {rate:g} has no compressor here")
        layers = self._compressors[rate]
        parts = {
            name: values @ layers[name][0].T + layers[name][1] for name, values in features._asdict().items()
        }
        return FeatureArrays(**parts)


def _fits(weight: npt.NDArray[Any], bias: npt.NDArray[Any], rate: float) -> bool:
    if weight.dtype != np.float32 or bias.dtype != np.float32 or weight.ndim != 2 or bias.ndim != 1:
        return False
    width, full = weight.shape
    return len(bias) == width == compressed_width(full, rate) and bool(
        np.isfinite(weight).all() and np.isfinite(bias).all()
    )


def _path(folder: Path, version: str) -> Path:
    return folder / f"{version}.safetensors"
