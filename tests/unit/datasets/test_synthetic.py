"""The synthetic dataset repeats exactly, has the stated people and shapes, and is hard, but learnable."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import EMOTIONS, Clip, ClipSource
from fedstill.datasets.audiovisual.specs import AudioSpec
from fedstill.datasets.audiovisual.spectrogram import audio_features
from fedstill.datasets.audiovisual.synthetic import FACES, SyntheticSource, draw_face, draw_person


def small(**changes: float) -> SyntheticSource:
    settings = {"public_per_class": 8, "private_per_class": 4, "public_speakers": 4, "private_speakers": 2}
    return SyntheticSource(**{**settings, **changes})  # type: ignore[arg-type]


def assert_same_clip(one: Clip, other: Clip) -> None:
    np.testing.assert_array_equal(one.audio, other.audio)
    np.testing.assert_array_equal(one.frames, other.frames)


def test_index_by_default() -> None:
    index = SyntheticSource().index
    assert Counter((info.split, info.label) for info in index) == {
        **{("public", label): 200 for label in range(6)},
        **{("private", label): 40 for label in range(6)},
    }
    people = {
        split: {info.speaker for info in index if info.split == split} for split in ("public", "private")
    }
    assert {split: len(names) for split, names in people.items()} == {"public": 16, "private": 6}
    assert not people["public"] & people["private"]
    assert len({info.clip_id for info in index}) == len(index) == 1440


def test_every_speaker_shows_every_emotion() -> None:
    shown = {(info.speaker, info.label) for info in small().index}
    assert len(shown) == (4 + 2) * len(EMOTIONS)


def test_clips_are_what_a_clip_source_promises() -> None:
    source: ClipSource = small(frame_size=32, frame_count=3)
    assert source.class_names == EMOTIONS
    for position, info in enumerate(source.index):
        clip = source.load(position)
        assert clip.info == info
        assert clip.audio.dtype == np.float32
        assert clip.audio.ndim == 1
        assert 1.5 <= len(clip.audio) / clip.sample_rate <= 2.51
        assert np.isfinite(clip.audio).all()
        assert 0.1 <= np.abs(clip.audio).max() <= 1.0
        assert clip.sample_rate == 16_000
        assert clip.frames.dtype == np.uint8
        assert clip.frames.shape == (3, 32, 32, 3)
        assert clip.frames.std() > 10
        assert clip.frames.flags.c_contiguous


def test_loading_order_does_not_matter() -> None:
    forwards, backwards = small(), small()
    clips = [forwards.load(position) for position in range(20)]
    for position in reversed(range(20)):
        assert_same_clip(clips[position], backwards.load(position))


def test_private_clips_do_not_depend_on_how_many_public_ones_there_are() -> None:
    few, many = small(public_per_class=1), small(public_per_class=5)
    assert_same_clip(few.load(6), many.load(30))


def test_the_seed_changes_people_and_clips() -> None:
    one, other = small(seed=1), small(seed=2)
    assert one.people["public-000"].pitch != other.people["public-000"].pitch
    assert not np.array_equal(one.load(0).frames, other.load(0).frames)


def test_frames_of_a_clip_move() -> None:
    frames = small(difficulty=0).load(1).frames.astype(np.float64)
    assert np.abs(frames[0] - frames[1]).mean() > 2


def test_private_people_come_from_a_shifted_distribution() -> None:
    def crowd(shift: float) -> npt.NDArray[np.float64]:
        people = [draw_person(np.random.default_rng(number), shift) for number in range(40)]
        return np.array([[one.skin.mean(), one.pitch, one.width] for one in people])

    public, private = crowd(0.0).mean(0), crowd(1.0).mean(0)
    assert private[0] < public[0] - 0.05
    assert private[1] > public[1] * 1.05
    assert private[2] > public[2] + 0.02


def test_every_emotion_has_its_own_face() -> None:
    """Same person, pose and noise: each pair differs by more than moving the picture's noise would."""
    person = draw_person(np.random.default_rng(0), 0.0)
    faces = [draw_face(person, row, 48, 1, 0.0, np.random.default_rng(1)).astype(np.float64) for row in FACES]
    for one, other in combinations(range(6), 2):
        changed = np.abs(faces[one] - faces[other]).max(axis=-1) > 40
        assert 15 <= changed.sum() <= 500, (EMOTIONS[one], EMOTIONS[other])


def linear_probe(difficulty: float) -> float:
    """Accuracy on private voices of a ridge regression on each mel band's mean and deviation."""
    source = SyntheticSource(
        public_per_class=40, private_per_class=20, frame_size=16, frame_count=1, difficulty=difficulty
    )
    bands = [
        audio_features(clip.audio, clip.sample_rate, AudioSpec())
        for clip in map(source.load, range(len(source.index)))
    ]
    inputs = np.array([np.concatenate([band.mean(1), band.std(1), [1.0]]) for band in bands])
    labels = np.array([info.label for info in source.index])
    public = np.array([info.split == "public" for info in source.index])
    seen = inputs[public]
    weights = np.linalg.solve(seen.T @ seen + 0.1 * np.eye(seen.shape[1]), seen.T @ np.eye(6)[labels[public]])
    return float(np.mean((inputs[~public] @ weights).argmax(1) == labels[~public]))


def test_difficulty_decides_how_much_a_simple_model_hears() -> None:
    easy, usual, hard = (linear_probe(difficulty) for difficulty in (0.0, 1.0, 4.0))
    assert easy > 0.6
    assert 0.3 < usual < 0.65
    assert hard < usual - 0.1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"public_per_class": 0, "private_per_class": 0}, "one split must have clips"),
        ({"seed": -1}, "0 or more"),
        ({"public_speakers": 0}, "at least 1 speaker"),
        ({"frame_count": 0}, "1 frame"),
        ({"frame_size": 8}, "16 pixels"),
        ({"difficulty": -1.0}, "from 0 to 5"),
        ({"difficulty": float("nan")}, "from 0 to 5"),
    ],
)
def test_impossible_settings_are_a_data_error(changes: dict[str, float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        small(**changes)


def test_further_classes_leave_the_six_emotions_as_they_are() -> None:
    six, many = small(), small(class_count=24)
    assert many.class_names[:6] == six.class_names
    assert len(set(many.class_names)) == 24
    assert sorted({info.label for info in many.index}) == list(range(24))  # type: ignore[type-var]
    for known, expressions in zip(six.expressions, many.expressions, strict=True):
        np.testing.assert_array_equal(expressions[:6], known)
        assert len(np.unique(expressions, axis=0)) == 24
    last = many.load(23)
    np.testing.assert_array_equal(last.frames, small(class_count=24).load(23).frames)
    assert last.info.clip_id == "public-00023-expression23"
    assert small(class_count=3).class_names == six.class_names[:3]


@pytest.mark.parametrize("count", [1, 101])
def test_a_number_of_classes_that_cannot_be_drawn_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"class_count is {count}: choose 2 to 100"):
        small(class_count=count)
