"""The engine's prediction for one row of a batch. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.models.vit.task_outputs import Output


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row's prediction.

    Attributes:
        logits: float32 (classes,) in the order of ``class_names``; of an embedding, float32 (width,).
        output: of its task.
    """

    logits: npt.NDArray[np.float32]
    class_names: tuple[str, ...]
    output: Output = "classes"

    @property
    def label(self) -> str:
        """The class with the largest logit; empty for an embedding."""
        return self.class_names[int(self.logits.argmax())] if self.class_names else ""

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Of each label by itself, float32 (classes,)."""
        return np.exp(-np.logaddexp(np.float32(0), -self.logits)).astype(np.float32)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels with a probability of at least one half, the most probable first."""
        order = np.argsort(-self.logits, kind="stable")
        return tuple(self.class_names[place] for place in order if self.logits[place] >= 0)


class ImageError(ValueError):
    """An image of a request that cannot be used; one line."""
