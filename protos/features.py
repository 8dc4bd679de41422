"""The features of one clip as bytes and back: the payload of an inference request, strict in both directions.

Little-endian, the audio vector first. fp32 and fp16 are plain values; int8 is one symmetric scale (float32) before
each vector. Nothing is guessed: a wrong length, NaN, infinity or a value that no encoder makes is refused, because
one such clip would spoil the numbers of a whole batch on the server.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedstill.models.audiovisual.levels import (
    SCALE_BYTES,
    Precision,
    compressed_payload_bytes,
    compressed_width,
)

LARGEST = 65504.0
"""Of half precision; encoders make values around 1."""
INT8_STEPS = 127

Vector = npt.NDArray[np.float32]


class FeatureError(ValueError):
    """The features do not fit; one line that starts with the field's name."""


class FeatureVectors(NamedTuple):
    """One clip's features: float32 (width,) per modality."""

    audio: Vector
    visual: Vector


def encode_features(features: FeatureVectors, precision: Precision) -> bytes:
    """One clip's (already compressed) features as bytes.

    Args:
        features: float32 (width,) each, of one width.
        precision: bits per value.

    Raises:
        FeatureError: unequal or empty vectors, NaN, infinity, values beyond half precision.
    """
    if features.audio.ndim != 1 or features.audio.shape != features.visual.shape or not features.audio.size:
        raise FeatureError(f"features: shapes {features.audio.shape} and {features.visual.shape}")
    for vector in features:
        _check_values(vector)
    return b"".join(_encode_vector(vector, precision) for vector in features)


def decode_features(payload: bytes, feature_width: int, rate: float, precision: Precision) -> FeatureVectors:
    """The inverse of :func:`encode_features`, as float32 (``compressed_width``,) each.

    Args:
        payload: as received.
        feature_width: of one modality before compression.
        rate: >= 1.

    Raises:
        FeatureError: wrong length, NaN, infinity, values beyond half precision, a scale that is not positive.
    """
    expected = compressed_payload_bytes(feature_width, rate, precision)
    if len(payload) != expected:
        raise FeatureError(
            f"features: {len(payload)} bytes, rate {rate:g} in {precision.value} has {expected}"
        )
    if not compressed_width(feature_width, rate):
        raise FeatureError(f"features: rate {rate:g} leaves nothing of {feature_width} values")
    half = expected // 2
    return FeatureVectors(*(_decode_vector(payload[start : start + half], precision) for start in (0, half)))


def quantise_vector(values: Vector) -> tuple[npt.NDArray[np.int8], np.float32]:
    """Symmetric int8 of float32 (width,), with its scale; the numpy twin of
    ``models.audiovisual.compression.quantise``."""
    peak = np.float32(np.abs(values).max())
    scale = peak / np.float32(INT8_STEPS)
    if not scale > 0:  # zeros, or too small to divide
        scale = np.float32(1)
    return np.clip(np.rint(values / scale), -INT8_STEPS, INT8_STEPS).astype(np.int8), scale


def _encode_vector(values: Vector, precision: Precision) -> bytes:
    if precision is Precision.INT8:
        whole, scale = quantise_vector(values)
        return np.array(scale, "<f4").tobytes() + whole.tobytes()
    return values.astype("<f4" if precision is Precision.FP32 else "<f2").tobytes()


def _decode_vector(payload: bytes, precision: Precision) -> Vector:
    if precision is not Precision.INT8:
        kind = "<f4" if precision is Precision.FP32 else "<f2"
        values = np.frombuffer(payload, kind).astype(np.float32)
    else:
        scale = np.frombuffer(payload[:SCALE_BYTES], "<f4")[0]
        if not 0 < scale <= LARGEST:
            raise FeatureError(f"features: scale {scale:g} is not a positive number of encoder size")
        whole = np.frombuffer(payload[SCALE_BYTES:], np.int8)
        if whole.min() < -INT8_STEPS:
            raise FeatureError("features: -128 is no symmetric int8 value")
        values = whole.astype(np.float32) * np.float32(scale)
    _check_values(values)
    return values


def _check_values(values: Vector) -> None:
    if not np.isfinite(values).all():
        raise FeatureError("features: NaN or infinity")
    if np.abs(values).max() > LARGEST * (1 + 1e-6):  # int8 rounds its scale
        raise FeatureError(f"features: a value beyond {LARGEST:g}")
