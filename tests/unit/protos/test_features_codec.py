"""The payload of an inference request: sizes, equality with the networks' own quantisation, strictness."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedstill.models.audiovisual.compression import (
    RATES,
    Precision,
    compressed_payload_bytes,
    dequantise,
    quantise,
)
from fedstill.models.audiovisual.levels import compressed_width
from fedstill.protos.features import (
    LARGEST,
    FeatureError,
    FeatureVectors,
    decode_features,
    encode_features,
    quantise_vector,
)

ROOT = Path(__file__).parents[3]
vectors = arrays.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-6e4, 6e4, width=32, allow_subnormal=False)
)


def drawn(width: int, seed: int = 0) -> FeatureVectors:
    return FeatureVectors(*np.random.default_rng(seed).normal(size=(2, width)).astype(np.float32))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("precision", Precision)
def test_the_payload_has_the_promised_size_and_comes_back(rate: float, precision: Precision) -> None:
    features = drawn(compressed_width(512, rate))
    payload = encode_features(features, precision)
    assert len(payload) == compressed_payload_bytes(512, rate, precision)
    error = {Precision.FP32: 0.0, Precision.FP16: 2e-3, Precision.INT8: 4 / 127}[precision]
    for sent, got in zip(features, decode_features(payload, 512, rate, precision), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, sent, atol=error)


@given(vectors)
def test_numpy_quantises_exactly_as_torch(values: np.ndarray) -> None:
    whole, scale = quantise_vector(values)
    torch_whole, torch_scale = quantise(torch.from_numpy(values)[None])
    assert scale == torch_scale.item()
    assert whole.tolist() == torch_whole[0].tolist()
    features = FeatureVectors(values, values)
    received = decode_features(encode_features(features, Precision.INT8), len(values), 1.0, Precision.INT8)
    assert received.audio.tolist() == dequantise(torch_whole, torch_scale)[0].tolist()


@given(vectors)
def test_numpy_rounds_to_half_as_torch(values: np.ndarray) -> None:
    payload = encode_features(FeatureVectors(values, values), Precision.FP16)
    received = decode_features(payload, len(values), 1.0, Precision.FP16)
    assert received.visual.tolist() == torch.from_numpy(values).half().float().tolist()


def test_bytes_are_little_endian_audio_first() -> None:
    features = FeatureVectors(np.array([1, 2], np.float32), np.array([-1, 0.5], np.float32))
    assert encode_features(features, Precision.FP16).hex() == "003c004000bc0038"
    assert encode_features(features, Precision.INT8)[4:6] == bytes([64, 127])


def test_an_encoder_refuses_what_a_decoder_would() -> None:
    fine = np.ones(3, np.float32)
    for bad in (
        np.array([1, np.nan, 2]),
        np.array([1, np.inf, 2]),
        np.array([1, 7e4, 2]),
        np.ones(2),
        np.ones(0),
    ):
        with pytest.raises(FeatureError, match=r"^features: "):
            encode_features(FeatureVectors(fine, bad.astype(np.float32)), Precision.FP32)


@pytest.mark.parametrize(
    ("payload", "precision"),
    [
        (b"", Precision.FP32),
        (bytes(15), Precision.FP32),
        (np.array([1, 2, 3, np.nan], "<f4").tobytes(), Precision.FP32),
        (np.array([1, 2, 3, 2 * LARGEST], "<f4").tobytes(), Precision.FP32),
        (np.array([1, 2, 3, np.inf], "<f2").tobytes(), Precision.FP16),
        (2 * (np.array(0, "<f4").tobytes() + bytes(2)), Precision.INT8),
        (2 * (np.array(-1, "<f4").tobytes() + bytes(2)), Precision.INT8),
        (2 * (np.array(np.nan, "<f4").tobytes() + bytes(2)), Precision.INT8),
        (2 * (np.array(1e38, "<f4").tobytes() + b"\x7f\x7f"), Precision.INT8),
        (2 * (np.array(1, "<f4").tobytes() + b"\x80\x00"), Precision.INT8),
    ],
)
def test_a_decoder_refuses(payload: bytes, precision: Precision) -> None:
    with pytest.raises(FeatureError, match=r"^features: "):
        decode_features(payload, 2, 1.0, precision)


def test_the_device_side_needs_no_torch() -> None:
    modules = ["cloud_inference", "cloud_connection", "levels", "link", "watch", "clip_files"]
    names = ", ".join(f"fedstill.edge_client.inference.{module}" for module in modules)
    names += ", fedstill.edge_client.students.runtime_api"
    program = f"import sys, {names}, fedstill.protos.features; sys.exit('torch' in sys.modules and 'torch is loaded')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "importroot", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
