"""What a device's model must be able to do, whichever library runs it (torch, onnxruntime)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.models.audiovisual.levels import Precision


class OtherNetwork(DeviceError):
    """This device has no means to run students of that kind; one line."""


class FeatureArrays(NamedTuple):
    """One float32 (n, width) array per modality."""

    audio: npt.NDArray[np.float32]
    visual: npt.NDArray[np.float32]


class Runtime(Protocol):
    """A student at work. Implemented by ``CompressedRuntime`` and by every ``DeviceRuntime``.

    Attributes:
        class_names: order of the logits.
        version: hash of the student's weights; the cloud finds its heads by it.
    """

    class_names: tuple[str, ...]
    version: str

    def features(self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]) -> FeatureArrays:
        """Audio float32 (n, bins, steps), frames uint8 (n, count, channels, size, size) -> (n, width) each."""
        ...

    def logits(self, features: FeatureArrays) -> npt.NDArray[np.float32]:
        """The local joint head: float32 (n, classes)."""
        ...

    def compress(self, features: FeatureArrays, rate: float) -> FeatureArrays:
        """Features at one compression rate; the identity at rate 1."""
        ...


class DeviceRuntime(Runtime, Protocol):
    """What ``Device`` needs beside inference. Each library uses its own softmax, so that a result does not depend on
    another file. Implemented by ``OnnxRuntime`` and ``TorchRuntime``."""

    def probabilities(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Softmax of (n, classes) logits."""
        ...

    def statistics(
        self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8], weight: float
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The batch norm statistics of these clips, by name in the student's state dict; arguments as ``features``.

        Args:
            weight: of these against the student's own, from 0 to 1.

        Returns:
            float32 (channels,) each; none if the owner's own graphs cannot compute them.

        Raises:
            ValueError: fewer than two clips.
            OtherNetwork: the coordinator's graphs are of before there were any for that.
        """
        ...

    def level_logits(
        self, features: FeatureArrays, rate: float, precision: Precision, weights: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        """What the cloud would answer at one compression level: float32 (n, classes).

        Args:
            weights: safetensors of the level's compressor and head, as in an EvaluationRequest.

        Raises:
            ValueError: weights that do not belong to this level.
        """
        ...


class LoadStudent(Protocol):
    """How a device makes a runtime of a student that it received.

    Implemented by ``torch_runtime.load_torch`` and ``runtime.ExportFolder.load``. Raises OtherNetwork if it cannot run
    students of that kind.
    """

    def __call__(
        self, state: Mapping[str, npt.NDArray[Any]], spec: str, class_names: tuple[str, ...], version: str
    ) -> DeviceRuntime:
        """
        Args:
            state: state dict by name.
            spec: JSON of the network specification.
            class_names: order of the logits.
            version: hash of the weights.

        Raises:
            ValueError: what does not fit; the text starts with the field's name.
        """
        ...
