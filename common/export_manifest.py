"""The description beside the ONNX files of an exported student: the cloud writes it, a device reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fedstill.common.dataclass_codec import PlainError, from_plain, to_plain

FORMAT = 1
DESCRIPTION = "meta.json"
WEIGHTS = "student.safetensors"
ENCODERS = "encoders.onnx"
INT8_ENCODERS = "encoders.int8.onnx"
HEAD = "head.onnx"
STATISTICS = "statistics.onnx"
"""Of graphs that the coordinator sends; an export has none."""


@dataclass(frozen=True)
class ExportedStudent:
    """The description of an exported student.

    Attributes:
        format: of this description.
        version: hash of the student's weights.
        class_names: order of the logits.
        network: the network specification, as in a checkpoint.
        audio, frames: how a clip becomes the inputs; the specifications of the datasets room, as plain values.
        audio_shape: (bins, steps) of one clip.
        frame_shape: (count, channels, size, size) of one clip.
        feature_width: of one modality.
        rates: compression rates whose compressors are here, beside 1.
        training_prior: class prior that the probabilities assume, one per class; empty if it is not known.
        files: SHA-256 (hex) by file name.
        weights: by graph, the shapes of the tensors (float32) that it takes from ``student.safetensors``, by name.
    """

    format: int
    version: str
    class_names: tuple[str, ...]
    network: dict[str, Any]
    audio: dict[str, Any]
    frames: dict[str, Any]
    audio_shape: tuple[int, ...]
    frame_shape: tuple[int, ...]
    feature_width: int
    rates: tuple[float, ...]
    training_prior: tuple[float, ...]
    files: dict[str, str]
    weights: dict[str, dict[str, tuple[int, ...]]]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise PlainError(f"format: {self.format}, this fedstill reads {FORMAT}")
        if not self.class_names or self.network.get("classes") != len(self.class_names):
            raise PlainError("class_names: not as many as the network has outputs")
        if len(self.training_prior) not in (0, len(self.class_names)):
            raise PlainError("training_prior: needs one value per class, or none")


def compressor_file(rate: float) -> str:
    """The graph of one rate's compressor."""
    return f"compressor-{rate:g}.onnx"


def compressor_weights_file(rate: float) -> str:
    """The file in which that graph finds its weights."""
    return f"compressor-{rate:g}.safetensors"


def to_json(exported: ExportedStudent) -> str:
    """For ``meta.json``."""
    return json.dumps(to_plain(exported), indent=1) + "\n"


def from_json(text: str) -> ExportedStudent:
    """The inverse of :func:`to_json`. Raises ValueError (a PlainError) naming what does not fit."""
    return from_plain(ExportedStudent, json.loads(text), complete=True)
