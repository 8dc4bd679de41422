"""Pictures as a player shows them: turned and mirrored by the file's display matrix, in one size, without HDR.

A phone stores what its sensor sees and adds how to show it. Front cameras mirror as well, so the rotation alone is
not enough. The matrix is that of ISO/IEC 14496-12, 8.3.2: (x, y) is shown at (a x + c y, b x + d y).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

Frames = npt.NDArray[np.uint8]

HDR_TRANSFERS = frozenset({ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67})  # PQ and HLG


class _Turn(NamedTuple):
    """Swap the axes if ``sideways``, then mirror rows and columns."""

    sideways: bool = False
    upside_down: bool = False
    mirrored: bool = False


def upright_pictures(frames: Sequence[av.VideoFrame]) -> Frames:
    """uint8 RGB (count, height, width, 3), upright. Frames of other sizes are scaled to that of the first.

    HDR (PQ, HLG) is mapped to the range of usual video: 203 cd/m2 becomes white.
    """
    turns = [_turn(frame) for frame in frames]
    height, width = frames[0].height, frames[0].width
    if turns[0].sideways:
        height, width = width, height
    return np.stack([_upright(frame, turn, height, width) for frame, turn in zip(frames, turns, strict=True)])


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
