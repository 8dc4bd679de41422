"""Frames cut to the face that they show, or to their middle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedstill.datasets.focus.face_track import middle_square, square_around, track_face
from fedstill.datasets.focus.faces import Boxes, find_faces

Frames = npt.NDArray[np.uint8]


def crop_to_face(frames: Frames, find: Callable[[Frames], Boxes] = find_faces) -> tuple[Frames, bool]:
    """The same square of all frames: around the clip's face, or in the middle if no frame has one.

    Args:
        frames: uint8 RGB (count, height, width, 3), in time order.
        find: the faces of one picture; see ``find_faces``.

    Returns:
        uint8 (count, side, side, 3), a view, and whether there was a face.

    Raises:
        DataError: OpenCV is not installed.
    """
    height, width = frames.shape[1:3]
    found: list[Boxes] = []
    for number, frame in enumerate(frames):
        same = number > 0 and np.array_equal(frame, frames[number - 1])  # a still image is repeated
        found.append(found[-1] if same else find(frame))
    box = track_face(found)
    left, top, side = middle_square(height, width) if box is None else square_around(box, height, width)
    return frames[:, top : top + side, left : left + side], box is not None
