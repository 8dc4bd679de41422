"""The compression levels as plain numbers: which levels exist, and a clip's bytes at each.

Separate from ``compression.py`` (the networks), because a device without torch needs these numbers, too.
"""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Bits per transmitted value."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


RATES = (1.0, 1.5, 2.0, 3.0)
MODALITIES = 2
SCALE_BYTES = 4
BYTES_PER_VALUE = {Precision.FP32: 4, Precision.FP16: 2, Precision.INT8: 1}


def compressed_width(feature_width: int, rate: float) -> int:
    """Dimensions left per modality: 512, 341, 256, 170 of 512 for the thesis' rates (rounded down)."""
    if rate < 1:
        raise ValueError(f"rate: {rate} is below 1; a level never enlarges features")
    return int(feature_width / rate)


def compressed_payload_bytes(feature_width: int, rate: float, precision: Precision) -> int:
    """Bytes of one clip's features: for 512-d, 4096 at rate 1 in fp32, 348 at rate 3 in int8."""
    values = BYTES_PER_VALUE[precision] * compressed_width(feature_width, rate)
    return MODALITIES * (values + SCALE_BYTES if precision is Precision.INT8 else values)
