"""A student loads from wherever one lies, and says the same of a clip however the clip is given."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers.exports import AUDIO, FRAMES, Exported, make_export
from helpers.media import tone, write_sound, write_video
from PIL import Image

import fedstill
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.datasets.decoding.decode import read_audio
from fedstill.edge_client.folder import EXPORT_FOLDER, FORMAT_FILE, SHELF_FOLDER
from fedstill.edge_client.students.students import ModelStore
from fedstill.models.audiovisual.specs import network_to_json
from fedstill.models.weights.delta import content_hash, encode_update
from fedstill.models.weights.packing import arrays
from fedstill.protos.messages import Student


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_export(tmp_path_factory.mktemp("exported"))


def state_folder(exported: Exported, folder: Path) -> Path:
    """What an agent has once it was personalised."""
    state, names = arrays(exported.net), exported.store.class_names
    spec = network_to_json(exported.net.spec)
    version = content_hash(state, (spec, *names))
    payload = np.frombuffer(encode_update(state, None, "exact").payload, np.uint8)
    store = ModelStore(folder / SHELF_FOLDER)
    store.student(Student(payload, spec, names, version, ""))
    assert store.install(version, lambda student: 1.0, 0.5).installed
    described = {"class_names": names, "audio": asdict(AUDIO), "frames": asdict(FRAMES)}
    (folder / FORMAT_FILE).write_text(json.dumps(described))
    return folder


@pytest.fixture
def clip() -> fedstill.Clip:
    return SyntheticSource(public_per_class=4, private_per_class=4, frame_size=24, frame_count=1).load(7)


def test_checkpoint_export_and_device_agree(exported: Exported, tmp_path: Path, clip: fedstill.Clip) -> None:
    from_checkpoint = fedstill.load_student(exported.stem)
    from_device = fedstill.load_student(state_folder(exported, tmp_path / "state"))
    with_export = state_folder(exported, tmp_path / "small")
    (with_export / EXPORT_FOLDER).symlink_to(exported.folder)
    probabilities = from_checkpoint.classify_clip(clip).probabilities
    for student in (from_device, fedstill.load_student(exported.folder), fedstill.load_student(with_export)):
        assert student.class_names == exported.store.class_names
        np.testing.assert_allclose(student.classify_clip(clip).probabilities, probabilities, atol=1e-4)
    assert from_checkpoint.version == fedstill.load_student(exported.folder).version


def test_the_clip_of_a_dataset_is_the_one_that_was_trained_on(exported: Exported) -> None:
    source = SyntheticSource(public_per_class=4, private_per_class=4, frame_size=24, frame_count=1)
    student = fedstill.load_student(exported.folder)
    runtime = student._runtime
    trained = runtime.probabilities(
        runtime.logits(runtime.features(exported.store.audio[:3], exported.store.frames[:3]))
    )
    for position in range(3):
        found = student.classify_clip(source.load(position))
        np.testing.assert_allclose(found.probabilities, trained[position], atol=1e-3)  # torch's spectrogram


def test_what_a_classification_says(exported: Exported, clip: fedstill.Clip) -> None:
    found = fedstill.load_student(exported.folder).classify(clip.audio, clip.sample_rate, clip.frames)
    assert isinstance(found, fedstill.Classification)
    assert found.label == found.class_names[found.probabilities.argmax()]
    assert found.probability == pytest.approx(found.probabilities.max())
    assert found.probabilities.sum() == pytest.approx(1.0, abs=1e-5)


def test_files_and_arrays_are_the_same_clip(exported: Exported, tmp_path: Path) -> None:
    student = fedstill.load_student(exported.folder)
    picture = np.full((48, 64, 3), (200, 120, 40), np.uint8)
    sound = write_sound(tmp_path / "walk.wav", seconds=1.0, rate=16_000)
    Image.fromarray(picture).save(tmp_path / "walk.png")
    beside = student.classify_file(sound)
    named = student.classify_file(str(sound), tmp_path / "walk.png")
    assert np.array_equal(beside.probabilities, named.probabilities)
    in_memory = student.classify(*read_audio(sound), picture[None])
    assert np.array_equal(in_memory.probabilities, beside.probabilities)
    film = student.classify_file(write_video(tmp_path / "film.mp4"))
    assert not np.allclose(film.probabilities, beside.probabilities, atol=1e-4)


def test_int8_is_another_student_of_an_export_only(exported: Exported, clip: fedstill.Clip) -> None:
    rounded = fedstill.load_student(exported.folder, int8=True).classify_clip(clip).probabilities
    exact = fedstill.load_student(exported.folder).classify_clip(clip).probabilities
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((24, 24, 3), np.uint8)}, "frames: need uint8 "),
        ({"frames": np.zeros((1, 24, 24, 3), np.float32)}, "frames: need uint8 "),
        ({"frames": np.zeros((0, 24, 24, 3), np.uint8)}, "frames: need uint8 "),
        ({"audio": np.zeros((2, 16_000), np.float32)}, "mix it down to one channel"),
        ({"audio": np.zeros(16_000, np.int16)}, "scale them to floats"),
        ({"audio": np.full(16_000, np.nan, np.float32)}, "NaN"),
        ({"sample_rate": -1}, "sample rate is -1"),
        ({"sample_rate": 0}, "a feature matrix"),
        ({"sample_rate": 0, "audio": np.zeros((3, 5), np.float32)}, "audio: needs float32"),
    ],
)
def test_arrays_that_are_no_clip(exported: Exported, change: dict[str, object], message: str) -> None:
    good = {
        "audio": tone(1.0, 16_000),
        "sample_rate": 16_000,
        "frames": np.zeros((1, 24, 24, 3), np.uint8),
    }
    with pytest.raises(fedstill.UserError, match=message):
        fedstill.load_student(exported.folder).classify(**{**good, **change})  # type: ignore[arg-type]


def test_a_feature_matrix_is_used_as_it_is(exported: Exported) -> None:
    student = fedstill.load_student(exported.folder)
    frames = np.zeros((1, 24, 24, 3), np.uint8)
    quiet, loud = (np.full(exported.store.audio.shape[1:], level, np.float32) for level in (0.0, 2.0))
    assert not np.allclose(
        student.classify(quiet, 0, frames).probabilities, student.classify(loud, 0, frames).probabilities
    )


def test_where_there_is_no_student(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(fedstill.UserError, match="holds no student: give a folder of fedstill export"):
        fedstill.load_student(tmp_path / "nothing")
    with pytest.raises(fedstill.UserError, match="holds no student"):
        fedstill.load_student(exported.folder / "encoders.onnx")
    waiting = state_folder(exported, tmp_path / "state")
    (waiting / FORMAT_FILE).unlink()
    with pytest.raises(fedstill.UserError, match="no student is installed on this device yet"):
        fedstill.load_student(waiting)


def test_a_damaged_student_ends_in_one_line(exported: Exported, tmp_path: Path) -> None:
    for name in ("mine.json", "mine.safetensors"):
        (tmp_path / name).write_bytes((exported.stem.parent / name).read_bytes()[:200])
    with pytest.raises(fedstill.UserError, match="damaged") as told:
        fedstill.load_student(tmp_path / "mine")
    assert "\n" not in str(told.value)
    described = (exported.folder / "meta.json").read_text()
    (tmp_path / "meta.json").write_text(described)
    with pytest.raises(fedstill.UserError, match="export"):
        fedstill.load_student(tmp_path)
