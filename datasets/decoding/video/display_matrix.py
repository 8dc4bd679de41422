"""Pictures as a player shows them: turned and mirrored by the file's display matrix, in one size, without HDR.

A phone stores what its sensor sees and adds how to show it. Front cameras mirror as well, so the rotation alone is
not enough. The matrix is that of ISO/IEC 14496-12, 8.3.2: (x, y) is shown at (a x + c y, b x + d y).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

Frames = npt.NDArray[np.uint8]

MOST_PIXELS = 100_000_000
"""Of all pictures together: ten of 4K, or 300 MB. They are made smaller for a model anyway."""
HDR_TRANSFERS = frozenset({ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67})  # PQ and HLG


class _Turn(NamedTuple):
    """Swap the axes if ``sideways``, then mirror rows and columns."""

    sideways: bool = False
    upside_down: bool = False
    mirrored: bool = False


def upright_pictures(shown: Iterable[tuple[av.VideoFrame, int]], count: int) -> Frames:
    """Each frame of ``shown`` so many times, ``count`` in all.

    Returns:
        uint8 RGB (count, height, width, 3), upright, in the size of the first frame; smaller if that is too much for
        the memory, (0, 0, 0, 3) if nothing is shown. HDR (PQ, HLG) is mapped to the range of usual video: 203 cd/m2
        becomes white.
    """
    pictures = np.empty((0, 0, 0, 3), np.uint8)
    done = 0
    for frame, times in shown:
        turn = _turn(frame)
        if not done:
            scale = min(1.0, math.sqrt(MOST_PIXELS / (count * frame.height * frame.width)))
            size = [max(1, int(side * scale)) for side in (frame.height, frame.width)]
            height, width = reversed(size) if turn.sideways else size
            pictures = np.empty((count, height, width, 3), np.uint8)
        pictures[done : done + times] = _upright(frame, turn, *pictures.shape[1:3])
        done += times
    return pictures


def _upright(frame: av.VideoFrame, turn: _Turn, height: int, width: int) -> Frames:
    if turn.sideways:
        height, width = width, height
    colours: dict[str, Any] = (
        {
            "dst_colorspace": Colorspace.ITU709,
            "dst_color_trc": ColorTrc.BT709,
            "dst_color_primaries": ColorPrimaries.BT709,
        }
        if frame.color_trc in HDR_TRANSFERS
        else {}
    )
    shown = frame.to_ndarray(format="rgb24", width=width, height=height, **colours).astype(
        np.uint8, copy=False
    )
    if turn.sideways:
        shown = shown.swapaxes(0, 1)
    return shown[:: -1 if turn.upside_down else 1, :: -1 if turn.mirrored else 1]


def _turn(frame: av.VideoFrame) -> _Turn:
    """The nearest of the eight turns that keep a picture rectangular; none for a matrix without an area."""
    given: Iterable[Any] = frame.side_data  # PyAV's annotations say that these are names
    matrix = next((data for data in given if data.type == Type.DISPLAYMATRIX), None)
    if matrix is None:
        return _Turn()
    numbers = np.frombuffer(bytes(matrix), np.int32)  # in the byte order of this machine
    a, b, c, d = numbers[[0, 1, 3, 4]].tolist()
    if a * d == b * c:
        return _Turn()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _Turn(upside_down=d < 0, mirrored=a < 0)
    return _Turn(sideways=True, upside_down=b < 0, mirrored=c < 0)
