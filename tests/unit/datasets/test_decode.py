"""Decoding of a user's media: the right sound, the right frames in the right order, or one clear sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.media import TONE, cut, shade, write_sound, write_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedstill.common.errors import DataError
from fedstill.datasets.decoding.decode import read_audio, read_video_frames, resample
from fedstill.datasets.decoding.image_files import (
    in_natural_order,
    read_image,
    read_images,
    resize_frames,
    spread,
)


def pitch(waveform: np.ndarray, rate: int) -> float:
    """Hz of the loudest frequency."""
    return float(np.abs(np.fft.rfft(waveform)).argmax() * rate / len(waveform))


def shades(frames: np.ndarray) -> list[int]:
    """Which frames of a made video these are."""
    return [round((float(frame.mean()) - shade(0)) / (shade(1) - shade(0))) for frame in frames]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_sound_files_of_all_kinds(tmp_path: Path, suffix: str) -> None:
    waveform, rate = read_audio(write_sound(tmp_path / f"tone.{suffix}", seconds=1.0))
    assert (waveform.dtype, rate) == (np.float32, 16_000)
    assert len(waveform) == pytest.approx(16_000, abs=1200)  # mp3 pads
    assert pitch(waveform, rate) == pytest.approx(TONE, abs=2)
    assert np.abs(waveform).max() == pytest.approx(0.5, abs=0.05)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.array([[0.5, -0.25], [0.0, 0.5]])
    soundfile.write(tmp_path / "stereo.wav", stereo, 8000)
    waveform, rate = read_audio(tmp_path / "stereo.wav")
    np.testing.assert_array_equal(waveform, np.float32([0.125, 0.25]))
    assert rate == 8000


@pytest.mark.parametrize("suffix", ["flv", "mp4"])
def test_sound_of_a_video(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip.{suffix}", frames=20)
    waveform, rate = read_audio(path)
    assert len(waveform) / rate == pytest.approx(2.0, abs=0.06)
    assert pitch(waveform, rate) == pytest.approx(TONE, abs=2)
    assert np.abs(waveform[:rate]).max() == pytest.approx(0.5, abs=0.05)  # AAC rings at the end


def test_silence_is_sound(tmp_path: Path) -> None:
    waveform, _ = read_audio(write_sound(tmp_path / "silent.wav", level=0.0))
    np.testing.assert_array_equal(waveform, np.zeros(16_000, np.float32))


@pytest.mark.parametrize("suffix", ["flv", "mp4"])
def test_frames_are_uniform_in_time_and_in_order(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip.{suffix}", frames=20)
    frames = read_video_frames(path, 10)
    assert (frames.shape, frames.dtype) == ((10, 48, 64, 3), np.uint8)
    assert shades(frames) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert shades(read_video_frames(path, 2)) == [5, 15]


def test_a_short_video_repeats_its_frames_in_order(tmp_path: Path) -> None:
    assert shades(read_video_frames(write_video(tmp_path / "three.mp4", frames=3), 6)) == [0, 0, 1, 1, 2, 2]
    assert shades(read_video_frames(write_video(tmp_path / "one.flv", frames=1), 3)) == [0, 0, 0]


def test_frames_of_a_stretch(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", frames=20)
    assert shades(read_video_frames(path, 2, start=1.0, end=1.4)) == [11, 13]
    assert shades(read_video_frames(path, 1, start=1.9, end=60.0)) == [19]
    with pytest.raises(DataError, match=r"clip\.mp4: lasts 2\.0 s, but 3\.0 s to 4\.0 s is asked for"):
        read_video_frames(path, 2, start=3.0, end=4.0)


def test_a_phone_video_is_turned_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "phone.mp4", frames=2)
    content = path.read_bytes()
    matrix, quarter_turn = (
        b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
        for numbers in (
            (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
            (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
        )
    )
    track = content.index(matrix, content.index(b"tkhd"))
    path.write_bytes(content[:track] + quarter_turn + content[track + len(matrix) :])
    assert read_video_frames(path, 1).shape == (1, 64, 48, 3)


def test_bytes_in_memory_equal_the_file(tmp_path: Path) -> None:
    video, sound = write_video(tmp_path / "clip.flv"), write_sound(tmp_path / "tone.wav")
    nowhere = tmp_path / "zip"
    for path in (video, sound):
        np.testing.assert_array_equal(
            read_audio(path)[0], read_audio(nowhere / path.name, path.read_bytes())[0]
        )
    np.testing.assert_array_equal(
        read_video_frames(video, 3), read_video_frames(nowhere / "clip.flv", 3, data=video.read_bytes())
    )


def missing(folder: Path) -> Path:
    return folder / "bad.wav"


def cut_flv(folder: Path) -> Path:
    return cut(write_video(folder / "bad.flv"), 0.6)


def cut_mp4(folder: Path) -> Path:
    return cut(write_video(folder / "bad.mp4"), 0.6)


def cut_wav(folder: Path) -> Path:
    return cut(write_sound(folder / "bad.wav"), 0.6)


def cut_flac(folder: Path) -> Path:
    return cut(write_sound(folder / "bad.flac"), 0.6)


def mute_video(folder: Path) -> Path:
    return write_video(folder / "bad.flv", sound=False)


def no_samples(folder: Path) -> Path:
    return write_sound(folder / "bad.wav", seconds=0.0)


def not_a_number(folder: Path) -> Path:
    soundfile.write(folder / "bad.wav", np.array([0.1, np.nan, 0.2]), 16_000, subtype="FLOAT")
    return folder / "bad.wav"


def no_media(folder: Path) -> Path:
    (folder / "bad.flv").write_text("<html>404 Not Found</html>")
    return folder / "bad.flv"


def empty_file(folder: Path) -> Path:
    (folder / "bad.wav").touch()
    return folder / "bad.wav"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (missing, "no such file: check the path"),
        (cut_flv, r"truncated, the last 0\.8 of 2\.0 s are missing: download"),
        (cut_mp4, "cannot decode"),
        (cut_wav, "truncated: download"),
        (cut_flac, "bad.flac: .*: download"),
        (mute_video, "no audio stream: download"),
        (no_samples, "no audio samples: download"),
        (not_a_number, "NaN or infinite audio samples: download"),
        (no_media, "cannot decode this file .*: download"),
        (empty_file, "cannot decode this sound file .*: download"),
    ],
)
def test_bad_sound_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], Path], complaint: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError, match=complaint) as refused:
        read_audio(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("make", [missing, cut_flv, cut_mp4, no_media, no_samples])
def test_bad_video_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError) as refused:
        read_video_frames(path, 2)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_images_of_a_folder_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        Image.new("L", (6, 4), number).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    frames = read_images(tmp_path, 6)
    assert frames.shape == (6, 4, 6, 3)
    assert frames[:, 0, 0, 0].tolist() == [1, 1, 2, 2, 10, 10]
    assert read_images(tmp_path / "frame_2.png", 2)[:, 0, 0, 0].tolist() == [2, 2]


def test_bad_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        read_images(tmp_path, 2)
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="differ in size: bring"):
        read_images(tmp_path, 2)
    with pytest.raises(DataError, match=r"a\.png: cannot decode this image"):
        read_image(cut(tmp_path / "a.png", 0.6))
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(
        DataError, match=r"deep\.tif: has values from 70000 to 70000: scale them to 0 to 65535"
    ):
        read_image(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_images(tmp_path / "none.png", 1)


def test_resizing_is_antialiased() -> None:
    fine = np.zeros((2, 64, 64, 3), np.uint8)
    fine[:, ::2] = 255  # lines that plain sampling would turn all black or all white
    small = resize_frames(fine, 16)
    assert small.shape == (2, 16, 16, 3)
    assert np.abs(small.astype(int) - 127).max() < 12


def test_resampling_keeps_pitch_and_length() -> None:
    source = np.sin(2 * np.pi * TONE * np.arange(44_100) / 44_100).astype(np.float32)
    result = resample(source, 44_100, 16_000)
    assert (len(result), result.dtype) == (16_000, np.float32)
    assert pitch(result, 16_000) == pytest.approx(TONE, abs=1)


def test_two_of_ten_are_two_and_seven() -> None:
    assert spread(2, 10) == [2, 7]
    assert spread(10, 10) == list(range(10))
    assert spread(4, 2) == [0, 0, 1, 1]


@given(count=st.integers(1, 60), available=st.integers(1, 60))
def test_spread_is_ordered_symmetric_and_even(count: int, available: int) -> None:
    chosen = spread(count, available)
    assert len(chosen) == count
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(range(available))
    uses = np.bincount(chosen, minlength=available)
    assert uses.max() - uses.min() <= 1


def test_natural_order_is_by_number_then_text() -> None:
    assert in_natural_order(["b1.JPG", "a10.png", "a9.png", "a.txt"]) == ["a9.png", "a10.png", "b1.JPG"]


@pytest.mark.data
def test_real_crema_d_video(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "cremad_sample" / "VideoFlash"
    videos = sorted(folder.glob("*.flv"))
    assert len(videos) == 6
    for video in videos:
        waveform, rate = read_audio(video)
        assert rate == 44_100
        assert 1.8 < len(waveform) / rate < 2.5
        assert 0.05 < np.abs(waveform).max() <= 1.0
        assert read_video_frames(video, 2).shape == (2, 360, 480, 3)
    broken = tmp_path / "broken.flv"
    broken.write_bytes(videos[0].read_bytes())
    cut(broken, 0.6)
    with pytest.raises(DataError, match=r"broken\.flv: is truncated"):
        read_audio(broken)
    with pytest.raises(DataError, match=r"broken\.flv: is truncated"):
        read_video_frames(broken, 2)


@pytest.mark.parametrize("name", ["walk.mp4", "walk.m4a"])
def test_a_film_without_ffmpeg_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [one for one in sys.modules if one.startswith("fedstill.datasets.decoding.video.film")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "av", None)
    film = tmp_path / name
    film.write_bytes(bytes(4) + b"ftypisom" + bytes(500))
    for read in (read_audio, lambda path: read_video_frames(path, 1)):
        with pytest.raises(DataError, match=r"install fedstill with the extra \[video\] as well") as caught:
            read(film)
        assert (caught.value.fault, str(film) in str(caught.value)) == ("package", True)
        assert "\n" not in str(caught.value)
    assert read_audio(write_sound(tmp_path / "tone.wav", seconds=0.5))[1] == 16_000
