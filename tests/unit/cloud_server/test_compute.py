"""Guards the number of threads, as many as asked for and never more than there are cores, and the layout of maps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedstill.cloud_server.distillation.compute import LEAST_CHANNELS, Compute, trained, use_threads
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.residual import Pointwise
from fedstill.models.audiovisual.specs import EncoderSpec, NetworkSpec


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr("fedstill.cloud_server.distillation.compute.usable_cores", lambda: 8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("wish", "asked", "threads"),
    [
        ("", 2, 2),
        ("", 99, 8),
        ("1", 2, 1),
        ("3", 8, 3),
        ("64", 99, 8),
        ("0", 2, 2),
        ("4,2", 2, 2),
        ("-1", 2, 2),
    ],
)
def test_who_shares_the_cores_says_so(
    wish: str, asked: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    use_threads(asked)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("architecture", "width"), [("resnet10", 4), ("resnet18", 8), ("resnet18", 12)])
def test_channels_last_trains_the_same_and_comes_back_as_it_was(architecture: str, width: int) -> None:
    """The gradients are as close to those in double precision as they are in the usual layout; afterwards strides are
    those of a network from a file."""
    spec = NetworkSpec(EncoderSpec(architecture, width), 16, 5, "concat", 1)
    compute, generator = Compute("cpu", "fp32"), torch.Generator().manual_seed(0)
    audio, frames = (
        torch.randn(6, 1, 32, 40, generator=generator),
        torch.randn(6, 1, 1, 24, 24, generator=generator),
    )

    def gradients(net: AudioVisualNet, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        net.train()
        net(audio.to(dtype), frames.to(dtype)).joint.square().mean().backward()
        return {name: one.grad.double() for name, one in net.named_parameters() if one.grad is not None}

    def made() -> AudioVisualNet:
        return AudioVisualNet(spec, torch.Generator().manual_seed(1))

    exact, fast = gradients(made().double(), torch.float64), compute.to_train(made())
    assert any(not value.is_contiguous() for value in fast.state_dict().values()) is (width >= LEAST_CHANNELS)
    found = gradients(fast)
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        assert (found[name] - value).abs().max() < 1e-3 * value.abs().max(), name
    back = trained(fast)
    assert not back.training
    assert all(value.is_contiguous() for value in back.state_dict().values())


@pytest.mark.parametrize("inputs", [4, 8, 12])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_strided_shortcut_has_the_right_gradient_in_every_layout(inputs: int, stride: int) -> None:
    torch.manual_seed(0)
    layer, maps = Pointwise(inputs, 2 * inputs, stride), torch.randn(3, inputs, 9, 10)
    exact = torch.nn.functional.conv2d(maps.double(), layer.weight.double(), stride=stride)
    for layout in (torch.contiguous_format, torch.channels_last):
        placed, given = layer.to(memory_format=layout), maps.to(memory_format=layout).requires_grad_(True)
        out = placed(given)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(placed(given), out)
        out.sum().backward()
        taken = maps[:, :, ::stride, ::stride].sum(dim=(0, 2, 3))
        torch.testing.assert_close(
            placed.weight.grad[:, :, 0, 0], taken.expand(2 * inputs, -1), rtol=1e-4, atol=1e-4
        )
        placed.weight.grad = None
