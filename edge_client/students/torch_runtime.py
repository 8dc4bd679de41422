"""A student under torch: the default, and the reference that every other runtime is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedstill.edge_client.students.runtime_api import FeatureArrays
from fedstill.models.audiovisual.batch_statistics import with_statistics_of
from fedstill.models.audiovisual.compression import CompressionNet
from fedstill.models.audiovisual.levels import Precision
from fedstill.models.audiovisual.network import AudioVisualNet, Features
from fedstill.models.audiovisual.own_clips import STATISTICS
from fedstill.models.audiovisual.specs import network_from_json
from fedstill.models.vit.preprocess import to_tensors
from fedstill.models.weights.packing import load_arrays, load_packed

BATCH = 64


class TorchRuntime:
    """A Runtime (``runtime_api.py``) over a network in evaluation mode; fp32 arithmetic, as a device would.

    Args:
        net: the student.
        class_names: order of its logits.
        version: hash of its weights.
        levels: the compressors that ``compress`` has, by rate, beside rate 1.
    """

    def __init__(
        self,
        net: AudioVisualNet,
        class_names: tuple[str, ...],
        version: str,
        levels: Mapping[float, CompressionNet] | None = None,
    ) -> None:
        self.class_names, self.version = class_names, version
        self._net = net.eval()
        self._levels = {rate: level.eval() for rate, level in (levels or {}).items()}

    @torch.no_grad()
    def features(self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]) -> FeatureArrays:
        """Audio float32 (n, bins, steps), frames uint8 (n, count, channels, size, size) -> (n, width) each."""
        parts = []
        for start in range(0, len(audio), BATCH):
            stop = start + BATCH
            parts.append(self._net.encoders(*to_tensors(audio[start:stop], frames[start:stop])))
        return _to_numpy(Features(*(torch.cat(column) for column in zip(*parts, strict=True))))

    @torch.no_grad()
    def logits(self, features: FeatureArrays) -> npt.NDArray[np.float32]:
        """The local joint head: float32 (n, classes)."""
        found: Tensor = self._net.head(_to_tensors(features)).joint
        return found.numpy()

    @torch.no_grad()
    def compress(self, features: FeatureArrays, rate: float) -> FeatureArrays:
        """Features at one compression rate; the identity at rate 1. Raises ValueError for an unknown rate."""
        if rate == 1:
            return features
        if rate not in self._levels:
            known = ", ".join(f"{one:g}" for one in (1.0, *self._levels))
            raise ValueError(f"rate: {rate:g} has no compressor here (known: {known})")
        return _to_numpy(self._levels[rate].compressor(_to_tensors(features)))

    def statistics(
        self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8], weight: float
    ) -> dict[str, npt.NDArray[np.float32]]:
        """See ``runtime_api.DeviceRuntime``."""
        adapted = with_statistics_of(self._net, *to_tensors(audio, frames), weight).state_dict()
        return {name: value.numpy() for name, value in adapted.items() if name.endswith(STATISTICS)}

    def probabilities(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Softmax of (n, classes) logits."""
        shares: npt.NDArray[np.float32] = torch.from_numpy(logits).softmax(dim=1).numpy()
        return shares

    @torch.no_grad()
    def level_logits(
        self, features: FeatureArrays, rate: float, precision: Precision, weights: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        """What the cloud would answer at one compression level: float32 (n, classes); ``weights`` as in an
        EvaluationRequest."""
        level = CompressionNet(features.audio.shape[1], len(self.class_names), rate)
        load_packed(level, weights)
        answer: Tensor = level(_to_tensors(features), precision)
        return answer.numpy()


def load_torch(
    state: Mapping[str, npt.NDArray[Any]], spec: str, class_names: tuple[str, ...], version: str
) -> TorchRuntime:
    """The network of a student. Raises ValueError naming what does not fit."""
    network = network_from_json(spec)
    if network.classes != len(class_names):
        raise ValueError(f"spec: {network.classes} classes for {len(class_names)} class names")
    net = AudioVisualNet(network)
    load_arrays(net, state)
    return TorchRuntime(net, class_names, version)


def use_one_thread() -> None:
    """Simulated devices share a machine; a real one has little compute. More threads help neither."""
    torch.set_num_threads(1)


def _to_tensors(features: FeatureArrays) -> Features:
    return Features(*(torch.from_numpy(part) for part in features))


def _to_numpy(features: Features) -> FeatureArrays:
    return FeatureArrays(*(part.numpy() for part in features))
