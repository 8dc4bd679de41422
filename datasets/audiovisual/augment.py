"""Training augmentation: hidden bands of sound, mirrored and slightly moved pictures.

Distillation gains from seeing every clip in many views ("patient and consistent", arXiv 2106.05237), and
several clients train in threads of one process. So every random number comes from the caller's generator: the same seed
gives the same views, whatever other threads do meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchaudio.functional import mask_along_axis_iid


class _DrawsFrom(TorchFunctionMode):
    """Inside this context ``torch.rand`` draws from ``generator``, in this thread only.

    torchaudio's masking knows only the global generator. Seeding that one would race with every other thread that uses
    it (for dropout, say); this leaves it untouched.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.rand:
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        drawn = func(*args, **kwargs, generator=self.generator, device=self.generator.device)
        return drawn.to(device)


def spec_augment(audio: Tensor, generator: torch.Generator, freq_width: int, time_width: int) -> Tensor:
    """Hide up to ``freq_width`` bins and up to ``time_width`` steps of each clip (arXiv 1904.08779).

    Args:
        audio: float32 (batch, bins, steps), z-scored, so that the hidden cells' 0 is the clip's mean.
        generator: of all random numbers; on any device.
        freq_width, time_width: widest band; 0 leaves that axis alone.

    Returns:
        A new tensor of the same shape, or ``audio`` itself if both widths are 0.
    """
    with _DrawsFrom(generator):
        for axis, width in ((1, freq_width), (2, time_width)):
            audio = mask_along_axis_iid(audio, width, 0.0, axis)
    return audio


def move_sound(audio: Tensor, generator: torch.Generator, steps: int, bins: int) -> Tensor:
    """Turn each clip by up to ``steps`` in time (what leaves at the end comes back at the start) and shift its
    pitch axis by up to ``bins`` (the border repeats).

    Args:
        audio: floating (batch, bins, steps).

    Returns:
        A new tensor of the same shape and dtype.
    """
    batch, height, width = audio.shape
    turn = torch.randint(0, steps + 1, (batch, 1), generator=generator, device=generator.device)
    raise_by = torch.randint(-bins, bins + 1, (batch, 1), generator=generator, device=generator.device)
    columns = (torch.arange(width, device=audio.device) - turn.to(audio.device)).remainder(width)
    rows = (torch.arange(height, device=audio.device) + raise_by.to(audio.device)).clamp(0, height - 1)
    moved = audio.gather(2, columns[:, None, :].expand_as(audio))
    shifted: Tensor = moved.gather(1, rows[:, :, None].expand_as(audio))
    return shifted


def vary_level(audio: Tensor, generator: torch.Generator, spread: float) -> Tensor:
    """Scale each clip by about 1 +- ``spread`` / 2 and offset it by about ``spread``: another microphone and room."""
    shape = (2, len(audio), 1, 1)
    drawn = torch.randn(shape, generator=generator, device=generator.device).to(audio.device)
    return audio * (1 + spread / 2 * drawn[0]) + spread * drawn[1]


def flip_and_shift(frames: Tensor, generator: torch.Generator, shift_pixels: int) -> Tensor:
    """Mirror every second clip and move each by up to ``shift_pixels``; all frames of a clip move together.

    Pixels that move in from outside repeat the border: an edge-padded random crop, as one gather per axis.

    Args:
        frames: floating (batch, count, channels, height, width).
        generator: of all random numbers; on any device.
        shift_pixels: largest move along each axis, >= 0.

    Returns:
        A new tensor of the same shape and dtype.
    """
    batch, *_, height, width = frames.shape
    move = torch.randint(
        -shift_pixels, shift_pixels + 1, (2, batch, 1), generator=generator, device=generator.device
    )
    mirrored = torch.rand(batch, 1, generator=generator, device=generator.device) < 0.5
    down, right = move.to(frames.device)
    rows = (torch.arange(height, device=frames.device) + down).clamp(0, height - 1)  # (batch, height)
    columns = (torch.arange(width, device=frames.device) + right).clamp(0, width - 1)  # (batch, width)
    columns = torch.where(mirrored.to(frames.device), width - 1 - columns, columns)
    moved = frames.gather(3, rows[:, None, None, :, None].expand_as(frames))
    return moved.gather(4, columns[:, None, None, None, :].expand_as(frames))
