"""Faces in a picture, by OpenCV's Haar cascade, whose weights are in its wheel.

Source: P. Viola and M. Jones, "Rapid Object Detection using a Boosted Cascade of Simple Features", CVPR 2001.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedstill.datasets.focus.missing import missing_detector

if TYPE_CHECKING:
    import cv2

Boxes = npt.NDArray[np.float64]
"""(faces, 4): left, top, width and height of each, in pixels."""

CASCADE = "haarcascade_frontalface_default.xml"
LONG_SIDE = 320
"""Pixels of the picture that is searched: a smaller one is not enlarged."""
SMALLEST_SHARE = 8
"""A face that is narrower than this part of the picture's short side is somebody in the background."""
SCALE_STEP, NEIGHBOURS = 1.1, 5

_OWN = threading.local()
"""A cascade is not safe to share between threads."""


def find_faces(picture: npt.NDArray[np.uint8]) -> Boxes:
    """The faces in one picture, uint8 RGB (height, width, 3), in no order; (0, 4) if there is none.

    Raises:
        DataError: OpenCV is not installed.
    """
    cascade = _cascade()
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, LONG_SIDE / max(height, width))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the same boxes on every machine, and no threads beside those of the caller
    try:
        grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        side = max(1, min(grey.shape) // SMALLEST_SHARE)
        found = cascade.detectMultiScale(grey, SCALE_STEP, NEIGHBOURS, minSize=(side, side))
    finally:
        cv2.setNumThreads(threads)
    boxes: Boxes = np.array(found, np.float64).reshape(-1, 4) / scale
    return boxes


def require_faces() -> None:
    """Raises DataError, one line, if OpenCV is not installed."""
    _cascade()


def _cascade() -> cv2.CascadeClassifier:
    found: cv2.CascadeClassifier | None = getattr(_OWN, "cascade", None)
    if found is None:
        try:
            import cv2
            from cv2.data import haarcascades
        except ImportError as error:
            raise missing_detector('frames.crop = "face"', "opencv-python-headless") from error
        found = _OWN.cascade = cv2.CascadeClassifier(haarcascades + CASCADE)
    return found
