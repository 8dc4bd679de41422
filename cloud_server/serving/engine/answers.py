"""The engine's result for one row of a batch: an answer, or the reason why there is none. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Answer:
    """One row's answer: float32 logits (classes,) in the order of ``class_names``."""

    logits: npt.NDArray[np.float32]
    class_names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The class with the largest logit."""
        return self.class_names[int(self.logits.argmax())]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one row gets no answer, while the rest of its batch does."""

    kind: Literal["unknown_task", "no_prompts", "bad_image"]
    message: str


class ImageError(ValueError):
    """An image of a request that cannot be used; one line."""
