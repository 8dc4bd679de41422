"""The training arrays: what goes in comes out, once, and a half-built store is never seen."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.media import tone

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.clip_tensors import frame_tensor
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.spectrogram import audio_features
from fedstill.datasets.audiovisual.store import build_store, open_store
from fedstill.datasets.audiovisual.waveform import feature_shape

AUDIO = AudioSpec(seconds=0.5)
FRAMES = FrameSpec(size=8, count=2, channels=1)


class MemorySource:
    """Clips from memory that counts how often they are decoded. Frame i of clip c is a grey of 10 c + i."""

    name = "memory"
    class_names = ("calm", "angry")

    def __init__(self, audio: list[np.ndarray], sample_rates: list[int] | None = None) -> None:
        self.audio = audio
        self.sample_rates = sample_rates or [16_000] * len(audio)
        self.loads = 0
        self.index = tuple(
            ClipInfo(f"clip{i}", "public" if i else "private", f"speaker{i % 2}", i % 2 if i else None)
            for i in range(len(audio))
        )

    def load(self, position: int) -> Clip:
        self.loads += 1
        shades = 10 * position + np.arange(10)
        frames = np.ones((10, 8, 8, 3), np.uint8) * shades[:, None, None, None].astype(np.uint8)
        return Clip(self.index[position], self.audio[position], frames, self.sample_rates[position])


@pytest.fixture
def source() -> MemorySource:
    return MemorySource([tone(0.6 + 0.1 * clip, 16_000) for clip in range(3)])


def test_the_arrays_of_the_chosen_clips(source: MemorySource, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    store = build_store(source, [2, 0], AUDIO, FRAMES, tmp_path / "store", lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    assert len(store) == 2
    assert store.info == (source.index[2], source.index[0])
    assert store.labels.tolist() == [0, -1]
    assert store.labels.dtype == np.int64
    assert store.speakers == ("speaker0", "speaker0")
    assert store.audio.shape == (2, *feature_shape(AUDIO))
    np.testing.assert_array_equal(store.audio[0], audio_features(source.audio[2], 16_000, AUDIO))
    assert store.frames.shape == (2, 2, 1, 8, 8)
    assert store.frames[:, :, 0, 0, 0].tolist() == [[22, 27], [2, 7]]
    assert isinstance(store.audio, np.memmap)
    assert isinstance(store.frames, np.memmap)
    assert not store.audio.flags.writeable


def test_a_store_is_reused_only_if_it_describes_the_same(source: MemorySource, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    first = build_store(source, [0, 1], AUDIO, FRAMES, folder)
    again = build_store(source, [0, 1], AUDIO, FRAMES, folder)
    assert source.loads == 2
    np.testing.assert_array_equal(first.audio, again.audio)
    assert (again.audio_spec, again.frame_spec) == (AUDIO, FRAMES)
    assert (again.dataset, again.class_names) == ("memory", ("calm", "angry"))

    build_store(source, [1, 0], AUDIO, FRAMES, folder)
    assert source.loads == 4
    build_store(source, [1, 0], replace(AUDIO, mel_bins=32), FRAMES, folder)
    assert source.loads == 6
    source.class_names = ("angry", "calm")
    store = build_store(source, [1, 0], replace(AUDIO, mel_bins=32), FRAMES, folder)
    assert source.loads == 8
    assert store.audio.shape[1] == 32
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def table_of(folder: Path) -> list[list[str]]:
    return [line.split(",") for line in (folder / "index.csv").read_text(encoding="utf-8").splitlines()]


def test_a_store_keeps_the_recordings(source: MemorySource, tmp_path: Path) -> None:
    source.index = tuple(replace(clip, group="take" if i else "") for i, clip in enumerate(source.index))
    store = build_store(source, [0, 1, 2], AUDIO, FRAMES, tmp_path / "store")
    assert store.info == source.index
    assert store.recordings == ("clip0", "take", "take")
    assert [row[4] for row in table_of(tmp_path / "store")] == ["group", "", "take", "take"]


def test_a_store_without_groups_opens_and_gets_them_without_decoding(
    source: MemorySource, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    build_store(source, [0, 1, 2], AUDIO, FRAMES, folder)
    older = "".join(",".join(row[:4]) + "\n" for row in table_of(folder))
    (folder / "index.csv").write_text(older, encoding="utf-8")
    assert open_store(folder).info == source.index
    assert build_store(source, [0, 1, 2], AUDIO, FRAMES, folder).recordings == ("clip0", "clip1", "clip2")
    assert (folder / "index.csv").read_text(encoding="utf-8") == older  # nothing to add

    source.index = tuple(replace(clip, group="take") for clip in source.index)
    store = build_store(source, [0, 1, 2], AUDIO, FRAMES, folder)
    assert source.loads == 3
    assert store.info == open_store(folder).info == source.index
    assert sorted(path.name for path in folder.iterdir()) == [
        "audio.npy",
        "frames.npy",
        "index.csv",
        "meta.json",
        "profiles.npy",
    ]


def test_a_damaged_store_is_built_again(source: MemorySource, tmp_path: Path) -> None:
    build_store(source, [0, 1], AUDIO, FRAMES, tmp_path / "store")
    audio = tmp_path / "store" / "audio.npy"
    audio.write_bytes(audio.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"store: is damaged .* build it again"):
        open_store(tmp_path / "store")
    store = build_store(source, [0, 1], AUDIO, FRAMES, tmp_path / "store")
    assert np.isfinite(store.audio).all()
    assert source.loads == 4


def test_an_interrupted_build_leaves_nothing(source: MemorySource, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(source, [0, 1, 2], AUDIO, FRAMES, tmp_path / "store", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_rebuild_leaves_the_old_store(source: MemorySource, tmp_path: Path) -> None:
    build_store(source, [0], AUDIO, FRAMES, tmp_path / "store")
    source.audio[1] = np.zeros(0, np.float32)
    with pytest.raises(DataError, match="clip clip1: audio is empty"):
        build_store(source, [0, 1], AUDIO, FRAMES, tmp_path / "store")
    assert open_store(tmp_path / "store").info == source.index[:1]


def test_feature_matrices_are_taken_as_they_are(tmp_path: Path) -> None:
    matrices = [np.full((3, 5), value, np.float32) for value in (1, 2)]
    store = build_store(MemorySource(matrices, [0, 0]), [0, 1], AUDIO, FRAMES, tmp_path / "store")
    np.testing.assert_array_equal(store.audio, np.stack(matrices))


def test_bad_sets_of_clips_are_refused(source: MemorySource, tmp_path: Path) -> None:
    matrix = np.ones((3, 5), np.float32)
    with pytest.raises(
        DataError, match="clip clip1: has 4 features, the first clip 3: give all clips as many"
    ):
        build_store(
            MemorySource([matrix, np.ones((4, 5), np.float32)], [0, 0]),
            [0, 1],
            AUDIO,
            FRAMES,
            tmp_path / "store",
        )
    # A matrix of the waveforms' shape would fit, and be a different quantity.
    same_shape = np.ones(feature_shape(AUDIO), np.float32)
    with pytest.raises(DataError, match="clip clip1: waveforms and ready feature matrices are mixed: use"):
        build_store(
            MemorySource([source.audio[0], same_shape], [16_000, 0]),
            [0, 1],
            AUDIO,
            FRAMES,
            tmp_path / "store",
        )
    with pytest.raises(DataError, match="no clips of memory are chosen"):
        build_store(source, [], AUDIO, FRAMES, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_feature_matrices_of_different_lengths_are_repeated_and_cut_as_sound_is(tmp_path: Path) -> None:
    steps = feature_shape(AUDIO)[1]
    long, short = (np.arange(3 * length, dtype=np.float32).reshape(3, length) for length in (steps + 9, 7))
    source = MemorySource([long, short], [0, 0])
    store = build_store(source, [0, 1], AUDIO, FRAMES, tmp_path / "store", keep_sound=True)
    assert np.array_equal(store.audio[0], long[:, :steps])
    assert np.array_equal(store.audio[1], np.tile(short, steps)[:, :steps])
    assert build_store(MemorySource([short], [0]), [0], AUDIO, FRAMES, tmp_path / "one").audio.shape[-1] == 7
    for wanted in (20, 3):  # what the cloud's clips have; an older store of another length is made again
        store = build_store(source, [1], AUDIO, FRAMES, tmp_path / "device", feature_steps=wanted)
        assert np.array_equal(store.audio[0], np.tile(short, 3)[:, :wanted])
    decoded = source.loads
    build_store(source, [1], AUDIO, FRAMES, tmp_path / "device", feature_steps=3)
    assert source.loads == decoded


def test_a_waveform_has_the_length_of_its_seconds_whatever_feature_matrices_have(
    source: MemorySource, tmp_path: Path
) -> None:
    store = build_store(source, [0], AUDIO, FRAMES, tmp_path / "store", feature_steps=3)
    assert store.audio.shape[1:] == feature_shape(AUDIO)


def test_a_folder_with_something_else_is_not_touched(source: MemorySource, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="is not a clip store and not empty: choose another folder"):
        build_store(source, [0], AUDIO, FRAMES, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_stores_that_cannot_be_opened(source: MemorySource, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meta\.json: no such file: build the store"):
        open_store(tmp_path)
    build_store(source, [0], AUDIO, FRAMES, tmp_path / "store")
    meta = tmp_path / "store" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 99}))
    with pytest.raises(DataError, match="has format 99, not 1: build it again"):
        open_store(tmp_path / "store")


def test_a_store_travels_to_another_process(source: MemorySource, tmp_path: Path) -> None:
    store = build_store(source, [0, 1], AUDIO, FRAMES, tmp_path / "store")
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    np.testing.assert_array_equal(copy.audio, store.audio)


def test_frames_are_picked_greyed_and_resized() -> None:
    frames = np.zeros((10, 20, 30, 3), np.uint8)
    frames[..., 1] = 100  # green
    frames[7, ..., 0] = 50
    colour = frame_tensor(frames, FrameSpec(size=6, count=2, channels=3))
    assert colour.shape == (2, 3, 6, 6)
    assert colour[:, :, 0, 0].tolist() == [[0, 100, 0], [50, 100, 0]]
    grey = frame_tensor(frames, FrameSpec(size=6, count=2, channels=1))
    assert grey[:, 0, 0, 0].tolist() == [round(0.587 * 100), round(0.587 * 100 + 0.299 * 50)]


def test_silence_becomes_finite_features(tmp_path: Path) -> None:
    silent = MemorySource([np.zeros(8000, np.float32)])
    store = build_store(silent, [0], AUDIO, FRAMES, tmp_path / "store")
    np.testing.assert_array_equal(store.audio, 0)


@pytest.mark.data
def test_real_emotion_pairs(data_dir: Path, tmp_path: Path) -> None:
    table = data_dir / "emotion_pairs" / "manifest.csv"
    chosen = range(0, 3696, 47)
    store = build_store(ManifestSource(table), chosen, AudioSpec(), FrameSpec(), tmp_path / "store")
    assert store.audio.shape == (79, 64, 157)
    assert store.frames.shape == (79, 1, 1, 48, 48)
    assert set(store.labels.tolist()) == set(range(6))
    np.testing.assert_allclose(store.audio.mean((1, 2)), 0, atol=1e-3)
    rows = [line.split(",") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    recordings = {rows[position][4] for position in chosen}  # some samples share one
    assert len({clip.tobytes() for clip in store.audio}) == len(recordings) > 30


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", None])
def test_damaged_profiles_are_named_and_built_again(
    content: bytes | None, source: MemorySource, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    build_store(source, [0, 1], AUDIO, FRAMES, folder)
    if content is None:
        np.save(folder / "profiles.npy", np.zeros((2, 5), np.float32))
    else:
        (folder / "profiles.npy").write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        open_store(folder)
    assert build_store(source, [0, 1], AUDIO, FRAMES, folder).profiles is not None


@pytest.mark.parametrize("place", [(-16000, 16000), (20000, -10), (2**62, 2**62), (2**63 - 1, 1)])
def test_sound_places_outside_are_refused(
    place: tuple[int, int], source: MemorySource, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    build_store(source, [0, 1], AUDIO, FRAMES, folder, keep_sound=True)
    places = np.load(folder / "sound_places.npy")
    places[0] = place
    np.save(folder / "sound_places.npy", places)
    with pytest.raises(DataError, match="is damaged"):
        open_store(folder)


def test_only_the_first_minute_of_an_hour_is_profiled_and_kept(tmp_path: Path) -> None:
    source = MemorySource([np.zeros(70 * 16_000, np.float32)])
    store = build_store(source, [0], AUDIO, FRAMES, tmp_path / "store", keep_sound=True)
    assert store.sound is not None
    assert len(store.sound.waveform(0)) == 60 * 16_000


def test_clips_that_cannot_be_used_are_left_out_and_the_others_keep_their_rows(
    source: MemorySource, tmp_path: Path
) -> None:
    """Whatever goes wrong with one clip: an error of ours, of a library, or a form that does not fit the first."""
    whole = build_store(source, range(3), AUDIO, FRAMES, tmp_path / "whole", keep_sound=True)
    mixed = MemorySource([source.audio[0], np.empty(0, np.float32), source.audio[1], tone(0.1, 16_000)[None]])
    mixed.sample_rates[3] = 0
    load = mixed.load

    def unplugged(position: int) -> Clip:
        if position == 0:
            raise ZeroDivisionError("of a library")
        return load(position)

    mixed.load = unplugged  # type: ignore[method-assign]
    bad: dict[int, str] = {}
    chosen = [1, 2, 0, 3]
    store = build_store(
        mixed, chosen, AUDIO, FRAMES, tmp_path / "store", keep_sound=True,
        on_bad=lambda position, error: bad.update({position: f"{error.fault}: {error}"}),
    )  # fmt: skip
    assert [clip.clip_id for clip in store.info] == ["clip2"]
    np.testing.assert_array_equal(store.audio[0], whole.audio[1])
    assert store.frames[0, :, 0, 0, 0].tolist() == [22, 27]
    assert store.profiles is not None
    assert len(store.profiles) == len(store.audio) == len(store.frames) == 1
    assert store.sound is not None
    assert set(bad) == {0, 1, 3}
    assert bad[0] == "undecodable: clip0: cannot decode this file (of a library): download or export it again"
    assert bad[3].startswith("form: clip clip3: waveforms and ready feature matrices are mixed")
    with pytest.raises(DataError, match="no clip of memory can be used"):
        build_store(mixed, [0, 1], AUDIO, FRAMES, tmp_path / "none", on_bad=lambda *_: None)
    assert not (tmp_path / "none").exists()
