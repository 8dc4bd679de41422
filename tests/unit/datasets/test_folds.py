"""Guards the rotation of speakers: everybody is tested once, and nothing of a private clip is trained on."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.data import DATA

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo, ClipSource
from fedstill.datasets.audiovisual.folds import FoldSource, pictures_of
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

SPEAKERS = ("ann", "ben", "cat", "dan")
FACES_PER_RECORDING = 3


@pytest.fixture
def manifest(tmp_path: Path) -> ManifestSource:
    """Four speakers with two recordings of three faces each; ann and dan were once seen beside the same face."""
    rows = []
    for speaker in SPEAKERS:
        for recording in range(2):
            for face in range(FACES_PER_RECORDING):
                picture = f"{speaker}{recording}{face}.png"
                if speaker in ("ann", "dan") and (recording, face) == (0, 0):
                    picture = "shared.png"
                clip_id = f"{speaker}{recording}{face}"
                split = "private" if speaker == "dan" else "public"
                rows.append([clip_id, split, speaker, "ab"[recording], f"{speaker}{recording}.wav", picture])
                for name in rows[-1][4:]:
                    (tmp_path / name).touch()
    file = tmp_path / "manifest.csv"
    with file.open("w", newline="") as written:
        csv.writer(written).writerows([["clip_id", "split", "speaker", "label", "audio", "frames"], *rows])
    return ManifestSource(file)


def sides(source: ClipSource) -> tuple[list[ClipInfo], list[ClipInfo]]:
    """(public, private) clips."""
    return (
        [info for info in source.index if info.split == "public"],
        [info for info in source.index if info.split == "private"],
    )


def require_nothing_shared(source: FoldSource) -> None:
    public, private = sides(source)
    assert {info.speaker for info in public}.isdisjoint({info.speaker for info in private})
    assert {info.recording for info in public}.isdisjoint({info.recording for info in private})
    picture = dict(
        zip((info.clip_id for info in source.source.index), pictures_of(source.source), strict=True)
    )
    assert {picture[info.clip_id] for info in public}.isdisjoint({picture[info.clip_id] for info in private})


@pytest.mark.parametrize("folds", [2, 4])
def test_every_speaker_is_private_once(manifest: ManifestSource, folds: int) -> None:
    seen: Counter[str] = Counter()
    for fold in range(folds):
        source = FoldSource(manifest, fold, folds)
        require_nothing_shared(source)
        public, private = sides(source)
        seen.update({info.speaker for info in private})
        assert {info.speaker for info in (*public, *private)} == set(SPEAKERS)
    assert seen == Counter(SPEAKERS)


def test_a_public_clip_with_a_private_face_is_left_out(manifest: ManifestSource) -> None:
    public, private = sides(FoldSource(manifest, 0, 4))
    assert "ann00" in {info.clip_id for info in private}
    assert {info.clip_id for info in manifest.index} - {info.clip_id for info in (*public, *private)} == {
        "dan00"
    }


def test_only_the_first_clips_of_a_private_recording_count(manifest: ManifestSource) -> None:
    public, private = sides(FoldSource(manifest, 3, 4, per_recording=2))
    assert [info.clip_id for info in private] == ["dan00", "dan01", "dan10", "dan11"]
    assert Counter(info.speaker for info in public) == {"ann": 5, "ben": 6, "cat": 6}


def test_public_recordings_keep_all_their_faces(manifest: ManifestSource) -> None:
    source = FoldSource(manifest, 0, 4, per_recording=1)
    require_nothing_shared(source)
    assert [info.clip_id for info in sides(source)[1]] == ["ann00", "ann10"]
    assert len(sides(source)[0]) == 3 * 2 * FACES_PER_RECORDING - 1  # dan00, whose face is ann00's


def test_one_fold_is_the_split_of_the_data(manifest: ManifestSource) -> None:
    source = FoldSource(manifest, 0, 1)
    require_nothing_shared(source)
    assert {info.speaker for info in sides(source)[1]} == {"dan"}


def test_clips_are_the_source_s_but_for_their_side() -> None:
    source = SyntheticSource(public_per_class=4, private_per_class=2, frame_size=24, frame_count=1)
    fold = FoldSource(source, 1, 2)
    moved = [info for info in fold.index if info not in source.index]
    assert moved
    for position in (0, len(fold.index) - 1):
        found = fold.load(position)
        expected = source.load([info.clip_id for info in source.index].index(found.info.clip_id))
        assert found.info == fold.index[position]
        np.testing.assert_array_equal(found.audio, expected.audio)
        np.testing.assert_array_equal(found.frames, expected.frames)


class OneSpeaker:
    """The same person on both sides."""

    name, class_names = "one", ("calm",)
    index = (ClipInfo("a", "public", "ann", 0), ClipInfo("b", "private", "ann", 0))

    def load(self, position: int) -> Clip:
        raise AssertionError("not decoded")


class Unlabelled(OneSpeaker):
    index = (ClipInfo("a", "public", "ann", 0), ClipInfo("b", "private", "ben", None))


@pytest.mark.parametrize(
    ("source", "fold", "folds", "text"),
    [
        (OneSpeaker(), 0, 1, "speaker ann is public and private"),
        (OneSpeaker(), 0, 2, "no fold 0 of 2: choose 1 to 1 folds"),
        (Unlabelled(), 0, 2, "clip b has no label"),
        (SyntheticSource(), 3, 3, "no fold 3 of 3"),
    ],
)
def test_what_cannot_be_rotated_is_refused(source: ClipSource, fold: int, folds: int, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        FoldSource(source, fold, folds)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not (DATA / "emotion_pairs" / "manifest.csv").exists(), reason="needs the real data")
def test_the_four_folds_of_emotion_pairs() -> None:
    manifest = ManifestSource(DATA / "emotion_pairs" / "manifest.csv")
    tested: Counter[str] = Counter()
    for fold in range(4):
        source = FoldSource(manifest, fold, 4, per_recording=2)
        require_nothing_shared(source)
        public, private = sides(source)
        speakers = sorted({info.speaker for info in private})
        women = [name for name in speakers if int(name.removeprefix("actor")) % 2 == 0]
        assert len(speakers) == 6
        assert len(women) == 3
        assert set(Counter(info.speaker for info in private).values()) == {88}
        assert set(Counter(info.recording for info in private).values()) == {2}
        assert len({info.speaker for info in public}) == 18
        tested.update(speakers)
    assert set(tested.values()) == {1}
    assert len(tested) == 24


@pytest.mark.skipif(not (DATA / "digit_pairs" / "manifest.csv").exists(), reason="needs the real data")
def test_the_three_folds_of_digit_pairs() -> None:
    manifest = ManifestSource(DATA / "digit_pairs" / "manifest.csv")
    private = [sides(FoldSource(manifest, fold, 3, per_recording=2))[1] for fold in range(3)]
    assert [len(clips) for clips in private] == [1000] * 3
    assert len({info.speaker for clips in private for info in clips}) == 6
