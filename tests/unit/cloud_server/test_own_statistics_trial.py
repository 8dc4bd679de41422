"""Public speakers who play a device say whether batch norm statistics of its own clips would help it, and by which
sign it sees that it lacks classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.patterned_clips import CLASSES, SPEC, made_clips, patterned_student

from fedstill.cloud_server.distillation.candidates import Estimate, estimated
from fedstill.cloud_server.federation import own_statistics
from fedstill.cloud_server.federation.own_statistics import (
    MARGIN,
    WEIGHTS,
    OwnStatistics,
    OwnStatisticsTrial,
)
from fedstill.models.audiovisual.network import AudioVisualNet

SPEAKERS, EACH = 4, 48


@pytest.fixture(scope="module")
def student() -> AudioVisualNet:
    """It knows the clips as they are."""
    return patterned_student()


AS_KNOWN, A_LITTLE, MUCH = (1.0, 0.0, 1.0, 0.0), (1.3, 0.8, 0.8, 40.0), (2.0, 3.0, 0.4, 150.0)
"""Of the sound, then of the pictures: by what each value is multiplied, and what is added."""


def trial(
    student: AudioVisualNet, recorded: tuple[float, float, float, float], clips: int = 200
) -> OwnStatistics | None:
    """With clips of speakers whom the student does not know, through another microphone and camera."""
    audio, frames, labels = made_clips(SPEAKERS * EACH, 7)
    louder, offset, paler, lighter = recorded
    audio = np.float32(louder) * audio + np.float32(offset)
    frames = (paler * frames + lighter).astype(np.uint8)
    speakers = tuple(f"speaker{place // EACH}" for place in range(len(labels)))
    cloud = SimpleNamespace(
        seed=0,
        bank=SimpleNamespace(labels=labels),
        public=SimpleNamespace(speakers=speakers, audio=audio, frames=frames),
        class_mixes=SimpleNamespace(temperature=1.0),
        plan=SimpleNamespace(student=SimpleNamespace(encoder=SPEC.encoder)),
    )
    world = SimpleNamespace(views=SimpleNamespace(fixed=lambda rows: (audio[rows], frames[rows])))
    held = np.arange(len(labels))

    def worth(name: str, gains: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> Estimate:
        return estimated(name, gains, labels[rows], held[rows], [1 / CLASSES] * CLASSES)

    return OwnStatisticsTrial(cloud, world, held, clips).judged(student, worth)  # type: ignore[arg-type]


def test_a_sign_is_asked_for_even_where_they_help_with_half_of_the_classes(student: AudioVisualNet) -> None:
    """On the test speakers such devices gained on average, and single ones lost 14 points."""
    found = trial(student, MUCH)
    assert found is not None
    assert found.worth.gain > 0.2
    assert found.surer > 0
    assert found.least_share > MARGIN


@pytest.mark.parametrize("clips", [32, 200])
def test_the_gain_is_of_the_clips_that_were_played(student: AudioVisualNet, clips: int) -> None:
    found = trial(student, MUCH, clips)
    assert found is not None
    assert found.worth.gain > 0.35, "not thinned by those that a device with few clips does not have"


def test_where_they_would_harm_without_some_classes_the_device_needs_a_sign(student: AudioVisualNet) -> None:
    found = trial(student, A_LITTLE)
    assert found is not None
    assert 0.005 < found.worth.gain < 0.2
    assert found.weight in WEIGHTS
    assert MARGIN < found.least_share < 0.9


def test_where_nothing_is_to_be_gained_no_device_is_asked(student: AudioVisualNet) -> None:
    assert trial(student, AS_KNOWN) is None


def test_too_few_clips_for_any_player_say_nothing(
    student: AudioVisualNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_statistics, "FEWEST_CLIPS", SPEAKERS * EACH + 1)
    assert trial(student, MUCH) is None


@pytest.mark.parametrize(("limit", "value"), [("MARGIN", 0.95), ("MOST_REFUSED", -0.1)])
def test_a_sign_that_nobody_could_give_is_not_asked_for(
    student: AudioVisualNet, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(own_statistics, limit, value)
    assert trial(student, A_LITTLE) is None


def test_the_same_seed_says_the_same_and_leaves_the_student_alone(student: AudioVisualNet) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert trial(student, MUCH) == trial(student, MUCH)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
