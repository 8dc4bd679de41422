"""The specification of a network, as plain values without torch: configurations and small devices read it, too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from fedstill.common.errors import UserError

Architecture = Literal["resnet10", "resnet18", "resnet34", "resnet101_basic", "resnet101"]
Stem = Literal["standard", "compact"]
Fusion = Literal["concat", "sum", "film", "gated"]


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another kind; one line."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """An encoder's shape.

    Attributes:
        architecture: block type and depth.
        width: channels of the first stage; the last stage has 8 x width (x 4 for Bottleneck).
        stem: ``standard`` is 7x7/2 and 3x3/2 max-pooling (papers, 224 px); ``compact`` is one 3x3/2
            convolution, for images of about 48 px.
    """

    architecture: Architecture = "resnet18"
    width: int = 64
    stem: Stem = "standard"

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            known = ", ".join(get_args(Architecture))
            raise ValueError(f"architecture: {self.architecture!r} is not one of {known}")
        if self.width < 1:
            raise ValueError(f"width: {self.width} is below 1")


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Everything needed to rebuild a network; travels in a checkpoint's ``meta.json``."""

    encoder: EncoderSpec
    feature_width: int
    classes: int
    fusion: Fusion = "concat"
    frame_channels: int = 3


def network_to_json(spec: NetworkSpec) -> str:
    """A network specification as JSON, for checkpoints and messages."""
    return json.dumps(asdict(spec), sort_keys=True)


def network_from_json(text: str) -> NetworkSpec:
    """The inverse of :func:`network_to_json`. Raises CheckpointError if the text is no specification."""
    try:
        values = json.loads(text)
        return NetworkSpec(**{**values, "encoder": EncoderSpec(**values["encoder"])})
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"network specification: {error}") from error
