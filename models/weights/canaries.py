"""A few public clips with the teacher's probabilities: a device tries a new student on these before using it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedstill.models.weights.delta import content_hash


@dataclass(frozen=True)
class Canaries:
    """Clips in the form of a clip store, with the teacher's probabilities.

    Attributes:
        audio: float32 (n, bins, steps).
        frames: uint8 (n, count, channels, size, size).
        teacher: float32 (n, classes), the teacher's probabilities.
    """

    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]
    teacher: npt.NDArray[np.float32]

    @cached_property
    def version(self) -> str:
        """SHA-256 of the content, 64 hex digits."""
        return content_hash({"audio": self.audio, "frames": self.frames, "teacher": self.teacher})

    def agreement(self, student: npt.NDArray[np.floating]) -> float:
        """Share of clips on which (n, classes) scores of a student and the teacher choose the same class.

        A student that scores NaN agrees nowhere. Raises ValueError without clips or if the shapes differ.
        """
        if student.shape != self.teacher.shape or not len(student):
            raise ValueError(
                f"canaries: {student.shape} scores of a student for {self.teacher.shape} of the teacher"
            )
        same = student.argmax(axis=1) == self.teacher.argmax(axis=1)
        return float((same & np.isfinite(student).all(axis=1)).mean())
