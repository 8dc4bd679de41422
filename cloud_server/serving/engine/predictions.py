"""The engine's prediction for one row of a batch. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row's prediction: float32 logits (classes,) in the order of ``class_names``."""

    logits: npt.NDArray[np.float32]
    class_names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The class with the largest logit."""
        return self.class_names[int(self.logits.argmax())]


class ImageError(ValueError):
    """An image of a request that cannot be used; one line."""
