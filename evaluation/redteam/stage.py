"""The attacks' input: clips as each kind of upload shows them, split into the attacker's and the victims'."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.settings import PrototypeSettings

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """Some clips as each kind of upload shows them; n rows each.

    Attributes:
        sound: float32 (n, bins, steps).
        picture: float32 (n, size, size), the first frame in grey, 0 to 1.
        features: float32 (n, 2 * feature_width), what inference uploads at rate 1.
        compressed: float32 (n, values), what arrives at rate 3 in int8.
        probabilities: float32 (n, classes), the student's probabilities.
        speaker: int64 (n,), a number per speaker.
        recording: int64 (n,), equal for clips that share their sound.
        label: int64 (n,), a number per class.
        profiles: float32 (n, CARD_SIZE), of which capture cards are means; None in a store older than these.
        sex: int64 (n,), a number per sex of the speaker; None unless it is known of every speaker.
    """

    sound: Floats
    picture: Floats
    features: Floats
    compressed: Floats
    probabilities: Floats
    speaker: Positions
    recording: Positions
    label: Positions
    profiles: Floats | None = None
    sex: Positions | None = None

    def __len__(self) -> int:
        return len(self.probabilities)


@dataclass(frozen=True)
class Stage:
    """Everything that the attacks need.

    Attributes:
        correct: the victims' clips that the student gets right, as a measure of the attacked student.
        student_saw_victims: whether the victims' clips were among those that the student was distilled on.
    """

    name: str
    dataset: str
    synthetic: bool
    class_names: tuple[str, ...]
    prototypes: PrototypeSettings
    seed: int
    attacker: View
    victims: View
    centres: Floats
    correct: int
    student_saw_victims: bool
