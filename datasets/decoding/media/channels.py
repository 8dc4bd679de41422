"""Decoded sound as it was recorded: float32 (channels, samples)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import av

Channels = npt.NDArray[np.float32]


PACKED = "flt"
"""FFmpeg's name of 32-bit floats, the channels of a moment together.

PyAV reads beyond its memory, and so ends the process, if each of more than eight channels is by itself.
"""


def samples_of(frame: av.AudioFrame) -> Channels:
    """float32 (channels, samples) of a frame in ``PACKED``."""
    packed = frame.to_ndarray().astype(np.float32, copy=False)
    return packed.reshape(-1, frame.layout.nb_channels).T


def joined(pieces: Sequence[Channels]) -> Channels:
    """Pieces one after the other; mixed to one channel each if they have not equally many."""
    if not pieces:
        return np.zeros((1, 0), np.float32)
    if len({len(piece) for piece in pieces}) > 1:
        pieces = [piece.mean(axis=0, keepdims=True, dtype=np.float32) for piece in pieces]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
