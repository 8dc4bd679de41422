"""One person's face through the frames of a clip, and the square that is cut out around it. numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fedstill.datasets.focus.faces import Boxes

MARGIN = 0.2
"""Of the face's side, added on every side: a detector's box ends at eyebrows and lower lip."""


def track_face(found: Sequence[Boxes]) -> Boxes | None:
    """The place of the face that a clip is about.

    It is the largest one of all frames. In the frames before and after, it is the one nearest to it, unless that is
    further away than the face is wide: then the detector missed it there. The result is the median over the frames, so
    that one wrong box does not count and the picture does not shake.

    Args:
        found: of each frame in time order, its faces, float (faces, 4).

    Returns:
        float (4,): left, top, width and height; None if no frame has a face.
    """
    sizes = [boxes[:, 2].max() if len(boxes) else 0.0 for boxes in found]
    if not any(sizes):
        return None
    start = int(np.argmax(sizes))
    largest = found[start][np.argmax(found[start][:, 2])]
    before = _follow(largest, reversed(found[:start]))
    return np.asarray(np.median([largest, *before, *_follow(largest, found[start + 1 :])], axis=0))


def square_around(box: Boxes, height: int, width: int, margin: float = MARGIN) -> tuple[int, int, int]:
    """(left, top, side) in pixels of a square in a picture of this size, around a box that is enlarged by ``margin``.

    It is moved, and at last made smaller, where the picture ends.
    """
    side = max(1, min(round(float(max(box[2:])) * (1 + 2 * margin)), height, width))
    left, top = (
        min(max(round(float(begin + length / 2 - side / 2)), 0), limit - side)
        for begin, length, limit in zip(box[:2], box[2:], (width, height), strict=True)
    )
    return left, top, side


def middle_square(height: int, width: int) -> tuple[int, int, int]:
    """(left, top, side) of the largest square in the middle of a picture."""
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side


def _follow(box: Boxes, frames: Iterable[Boxes]) -> list[Boxes]:
    path = []
    for faces in frames:
        if not len(faces):
            continue
        distances = np.hypot(*(_centres(faces) - _centres(box[None])).T)
        nearest = int(distances.argmin())
        if distances[nearest] <= box[2]:
            box = faces[nearest]
            path.append(box)
    return path


def _centres(boxes: Boxes) -> Boxes:
    return boxes[:, :2] + boxes[:, 2:] / 2
