"""Guards the compression levels: the bytes and widths of the thesis' rates, and the largest error of int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedstill.models.audiovisual.compression import (
    RATES,
    CompressionNet,
    Compressor,
    Precision,
    compressed_payload_bytes,
    compressed_width,
    dequantise,
    quantise,
)
from fedstill.models.audiovisual.network import Features


@pytest.mark.parametrize(
    ("rate", "precision", "size"),
    [
        *[(1, "fp32", 4096), (3, "fp32", 1360), (1, "int8", 1032), (3, "int8", 348)],
        *[(1, "fp16", 2048), (1.5, "fp16", 1364)],
    ],
)
def test_bytes_of_one_clip(rate: float, precision: str, size: int) -> None:
    assert compressed_payload_bytes(512, rate, Precision(precision)) == size


def test_widths_of_the_thesis_rates() -> None:
    assert [compressed_width(512, rate) for rate in RATES] == [512, 341, 256, 170]


def test_a_level_never_enlarges() -> None:
    with pytest.raises(ValueError, match="rate"):
        compressed_width(512, 0.5)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("precision", Precision)
def test_what_is_sent_has_the_promised_size(rate: float, precision: Precision) -> None:
    features = Features(torch.randn(1, 512), torch.randn(1, 512))
    sent = Compressor(512, rate)(features)
    on_the_wire = {
        Precision.FP32: lambda one: (one,),
        Precision.FP16: lambda one: (one.half(),),
        Precision.INT8: quantise,
    }
    tensors = [part for one in sent for part in on_the_wire[precision](one)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert size == compressed_payload_bytes(512, rate, precision)


def test_rate_one_is_no_module() -> None:
    features = Features(torch.randn(2, 16), torch.randn(2, 16))
    sent = Compressor(16, 1.0)(features)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(sent, features, strict=True))
    assert not list(Compressor(16, 1.0).parameters())


values = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=20),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


@given(values)
def test_int8_errs_by_half_a_step_at_most(batch: np.ndarray) -> None:
    original = torch.from_numpy(batch)
    whole, scale = quantise(original)
    assert (whole.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert scale.shape == (len(batch), 1)
    assert (scale > 0).all()
    error = (dequantise(whole, scale) - original).abs()
    rounding = 1e-6 * original.abs().amax(dim=1, keepdim=True)
    assert (error <= scale / 2 + rounding).all()


@given(values)
def test_quantising_twice_changes_nothing_more(batch: np.ndarray) -> None:
    once = dequantise(*quantise(torch.from_numpy(batch)))
    twice = dequantise(*quantise(once))
    torch.testing.assert_close(once, twice, rtol=1e-5, atol=0)


def test_zeros_survive() -> None:
    whole, scale = quantise(torch.zeros(2, 3))
    assert dequantise(whole, scale).tolist() == [[0.0] * 3] * 2
    assert scale.tolist() == [[1.0], [1.0]]


def test_int8_hardly_moves_the_logits() -> None:
    torch.manual_seed(0)
    net, features = CompressionNet(64, 6, 2.0), Features(torch.randn(32, 64), torch.randn(32, 64))
    plain, coarse = net(features), net(features, Precision.INT8)
    assert 0 < (plain - coarse).abs().max() < 0.05 * plain.abs().max()
