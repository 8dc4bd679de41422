"""Sound files as people have them: a complete one is read whole whatever its header says, a broken one is named."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.sound_files import (
    RATE,
    encoded,
    encoded_by_ffmpeg,
    mp3,
    noise,
    with_bytes,
    with_flac_length,
    with_hole,
    with_wav_sizes,
)

from fedstill.common.errors import DataError
from fedstill.datasets.decoding.decode import read_audio
from fedstill.datasets.decoding.sound.cancellation import cancels_out
from fedstill.datasets.decoding.sound_files import read_sound_file

SOUND = np.rint(noise(1.5) * 32768).astype(np.float32) / 32768  # 16 bits hold it exactly
MP3_RATE = 44_100
HALVES = np.concatenate([noise(3, MP3_RATE, 0.5), noise(3, MP3_RATE, 0.001)])  # of very different bitrates


def heard(folder: Path, content: bytes, name: str = "clip.wav") -> np.ndarray:
    """What is read, from the file and from its bytes alike."""
    path = folder / name
    path.write_bytes(content)
    waveform, rate = read_audio(path)
    again, _ = read_audio(folder / "zip" / name, content)
    np.testing.assert_array_equal(waveform, again)
    assert waveform.dtype == np.float32
    assert rate in (RATE, 8000, MP3_RATE)
    return waveform


def complaint(folder: Path, content: bytes, name: str) -> str:
    """The one line about a file that is refused."""
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_audio(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("download or export it again")
    assert "\n" not in message
    assert "BytesIO" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 44_100])
@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("WAV", "ULAW"),
        ("WAV", "MS_ADPCM"),
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_regular_file_is_what_libsndfile_reads(
    tmp_path: Path, form: str, subtype: str, rate: int, channels: int
) -> None:
    content = encoded(np.stack([SOUND, 0.5 * SOUND][:channels], axis=1), form, subtype, rate)
    with soundfile.SoundFile(BytesIO(content)) as file:
        expected = file.read(dtype="float32", always_2d=True)
    np.testing.assert_array_equal(heard(tmp_path, content), expected.mean(axis=1, dtype=np.float32))


WAV = encoded(SOUND, "WAV")
TAIL = b"LIST" + (40).to_bytes(4, "little") + b"INFO" * 10


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(with_wav_sizes(WAV, 0x7FFFF024, 0x7FFFF000), id="pipe of sox"),
        pytest.param(with_wav_sizes(WAV, 2**32 - 1, 2**32 - 1), id="pipe of ffmpeg"),
        pytest.param(with_wav_sizes(WAV, 2**31 + 36, 2**31), id="pipe of arecord"),
        pytest.param(with_wav_sizes(WAV, 0, 0), id="no sizes"),
        pytest.param(with_wav_sizes(WAV, 36, 0), id="sizes from before the recording"),
        pytest.param(with_wav_sizes(WAV, 8036, 8000), id="sizes from early in the recording"),
        pytest.param(with_wav_sizes(WAV, len(WAV), None), id="the whole file as RIFF size"),
        pytest.param(with_wav_sizes(WAV, None, len(WAV)), id="the whole file as data size"),
        pytest.param(with_wav_sizes(WAV, 2 * len(WAV), None), id="too large a RIFF size"),
        pytest.param(WAV + TAIL, id="a chunk after the RIFF"),
        pytest.param(WAV + TAIL[:-20], id="a cut chunk after the sound"),
        pytest.param(WAV + b"TAG" + bytes(125), id="an MP3 tag"),
    ],
)
def test_a_complete_wav_with_a_wrong_header_is_read_whole(tmp_path: Path, content: bytes) -> None:
    np.testing.assert_array_equal(heard(tmp_path, content), SOUND)


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63 - 1, 2 * len(SOUND)])
def test_rf64_is_read_whole(tmp_path: Path, size: int) -> None:
    content = encoded(SOUND, "RF64")
    place = content.index(b"ds64") + 16
    np.testing.assert_array_equal(
        heard(tmp_path, with_bytes(content, place, size.to_bytes(8, "little"))), SOUND
    )


def test_a_big_endian_wav_from_a_pipe(tmp_path: Path) -> None:
    file = BytesIO()
    soundfile.write(file, SOUND, RATE, format="WAV", endian="BIG")
    content = file.getvalue()
    assert content.startswith(b"RIFX")
    np.testing.assert_array_equal(heard(tmp_path, content), SOUND)
    np.testing.assert_array_equal(heard(tmp_path, with_wav_sizes(content, 0, 0)), SOUND)


def test_the_padding_of_an_odd_wav_may_be_absent(tmp_path: Path) -> None:
    odd = encoded(SOUND[:-1], "WAV", "PCM_U8")
    assert len(odd) % 2 == 0
    expected = soundfile.read(BytesIO(odd), dtype="float32")[0]
    np.testing.assert_array_equal(heard(tmp_path, odd[:-1]), expected)
    np.testing.assert_array_equal(heard(tmp_path, odd[:-1] + TAIL), expected)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encoded(SOUND, "WAV", "GSM610", 8000), id="GSM 6.10"),
        pytest.param(encoded_by_ffmpeg(SOUND, "adpcm_yamaha", "wav", 8000), id="Yamaha ADPCM"),
        pytest.param(encoded_by_ffmpeg(SOUND, "libmp3lame", "wav", 8000), id="MP3"),
    ],
)
def test_other_codecs_in_a_wav(tmp_path: Path, content: bytes) -> None:
    waveform = heard(tmp_path, content)
    assert len(SOUND) <= len(waveform) <= len(SOUND) + 2400


def test_a_wav_without_sound_is_not_given_its_tags_as_sound(tmp_path: Path) -> None:
    empty = with_wav_sizes(WAV[: WAV.index(b"data") + 8], None, 0)
    for content in (empty, empty + TAIL, empty + bytes(600)):
        assert complaint(tmp_path, content, "clip.wav").startswith("holds no audio samples")


@pytest.mark.parametrize("is_variable", [False, True])
@pytest.mark.parametrize("order", [1, -1], ids=["loud first", "quiet first"])
def test_an_mp3_without_a_length_is_read_whole(tmp_path: Path, order: int, is_variable: bool) -> None:
    content = mp3(HALVES[::order], xing=False, variable=is_variable, rate=MP3_RATE)
    waveform = heard(tmp_path, content, "clip.mp3")
    assert 0 <= len(waveform) - len(HALVES) < 3 * 1152
    first, second = (
        np.abs(waveform[: 2 * MP3_RATE]).mean(),
        np.abs(waveform[4 * MP3_RATE :][:MP3_RATE]).mean(),
    )
    assert (first > 100 * second) if order == 1 else (second > 100 * first)


PLAIN_MP3, XING_MP3 = mp3(SOUND, xing=False), mp3(SOUND, xing=True)
ID3V1 = b"TAG" + b"title".ljust(125, b"\0")
FRAME_MP3 = PLAIN_MP3[10 + PLAIN_MP3[9] :]  # without its ID3 tag


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        pytest.param(PLAIN_MP3 + ID3V1, 1, id="ID3v1"),
        pytest.param(XING_MP3 + ID3V1, 1, id="Xing and ID3v1"),
        pytest.param(FRAME_MP3, 1, id="no tag"),
        pytest.param(b"ID3\4\0\0\0\1\0\0" + bytes(16_384) + FRAME_MP3, 1, id="padded ID3"),
        pytest.param(PLAIN_MP3 + PLAIN_MP3, 2, id="two joined"),
        pytest.param(XING_MP3 + ID3V1 + XING_MP3, 2, id="two joined with their lengths"),
    ],
)
def test_tags_and_joined_mp3(tmp_path: Path, content: bytes, parts: int) -> None:
    for name in ("clip.mp3", "clip.dat"):
        assert 0 <= len(heard(tmp_path, content, name)) - parts * len(SOUND) < parts * 4 * 576


FLAC = encoded(SOUND, "FLAC")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        pytest.param(with_flac_length(FLAC, 0), 1, id="from a pipe"),
        pytest.param(with_flac_length(FLAC, 0) + ID3V1, 1, id="from a pipe, with a tag"),
        pytest.param(with_flac_length(FLAC, 8000), 1, id="length from early in the recording"),
        pytest.param(b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + FLAC, 1, id="behind a tag"),
        pytest.param(FLAC + FLAC, 2, id="two joined"),
    ],
)
def test_a_complete_flac_is_read_whole(tmp_path: Path, content: bytes, parts: int) -> None:
    np.testing.assert_array_equal(heard(tmp_path, content, "clip.flac"), np.tile(SOUND, parts))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_both_links_of_a_chained_ogg(tmp_path: Path, subtype: str) -> None:
    first, second = (encoded(sound, "OGG", subtype) for sound in (SOUND, SOUND[::-1].copy()))
    expected = [soundfile.read(BytesIO(link), dtype="float32")[0] for link in (first, second)]
    np.testing.assert_array_equal(heard(tmp_path, first + second, "clip.ogg"), np.concatenate(expected))


def test_the_links_of_a_chain_may_differ_in_channels_but_not_in_rate(tmp_path: Path) -> None:
    mono = encoded(SOUND, "OGG")
    stereo = encoded(np.stack([SOUND, SOUND], axis=1), "OGG")
    assert len(heard(tmp_path, mono + stereo, "clip.ogg")) == 2 * len(SOUND)
    (tmp_path / "rates.ogg").write_bytes(mono + encoded(SOUND, "OGG", rate=8000))
    with pytest.raises(DataError, match=r"rates\.ogg: is a chain of different sample rates: convert it"):
        read_audio(tmp_path / "rates.ogg")


@pytest.mark.parametrize("name", ["clip.wav", "clip.mp3", "clip.flac", "clip.ogg", "clip.dat"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encoded_by_ffmpeg(SOUND, "aac", "ipod"), id="m4a"),
        pytest.param(encoded_by_ffmpeg(SOUND, "aac", "matroska"), id="mkv"),
        pytest.param(encoded(SOUND, "AIFF"), id="aiff"),
        pytest.param(WAV, id="wav"),
        pytest.param(FLAC, id="flac"),
        pytest.param(XING_MP3, id="mp3"),
        pytest.param(encoded(SOUND, "OGG"), id="ogg"),
    ],
)
def test_the_content_decides_not_the_ending(tmp_path: Path, content: bytes, name: str) -> None:
    assert 0 <= len(heard(tmp_path, content, name)) - len(SOUND) < 2400


def ogg_page(content: bytes, number: int) -> int:
    """Where page ``number`` begins."""
    position = 0
    for _ in range(number):
        position = content.index(b"OggS", position + 1)
    return position


OGG = encoded(noise(20.0), "OGG")  # of several pages
LOST_PAGE = OGG[: ogg_page(OGG, 4)] + OGG[ogg_page(OGG, 5) :]


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        pytest.param(WAV[:-3000], "clip.wav", "is truncated", id="cut wav"),
        pytest.param(
            with_wav_sizes(WAV, 0, None)[:-3000], "clip.wav", "is truncated", id="cut wav, no RIFF size"
        ),
        pytest.param(encoded(SOUND, "RF64")[:-3000], "clip.wav", "is truncated", id="cut rf64"),
        pytest.param(encoded(SOUND, "WAV", "GSM610", 8000)[:-650], "clip.wav", "is truncated", id="cut gsm"),
        pytest.param(XING_MP3[:-2000], "clip.mp3", "is truncated: it holds", id="cut mp3"),
        pytest.param(
            PLAIN_MP3[:-2000], "clip.mp3", "is truncated: it ends in the middle", id="cut mp3, no Xing"
        ),
        pytest.param(with_hole(XING_MP3, 0.4, 0.6), "clip.mp3", "is truncated: it holds", id="hole in mp3"),
        pytest.param(
            with_hole(PLAIN_MP3, 0.4, 0.6), "clip.mp3", "is damaged: after", id="hole in mp3, no Xing"
        ),
        pytest.param(
            with_hole(PLAIN_MP3, 0.8, 1.0), "clip.mp3", "is damaged: after", id="mp3 without its end"
        ),
        pytest.param(
            with_hole(FRAME_MP3, 0, 0.2), "clip.mp3", "is damaged: it begins", id="mp3 without its start"
        ),
        pytest.param(FLAC[: len(FLAC) // 2], "clip.flac", "", id="cut flac"),
        pytest.param(
            with_flac_length(FLAC, 0)[: len(FLAC) // 2], "clip.flac", "is truncated", id="cut flac, no length"
        ),
        pytest.param(with_hole(FLAC, 0.4, 0.6), "clip.flac", "", id="hole in flac"),
        pytest.param(
            with_hole(with_flac_length(FLAC, 0), 0.4, 0.6), "clip.flac", "", id="hole in flac, no length"
        ),
        pytest.param(OGG[:-500], "clip.ogg", "is truncated: its last page", id="cut ogg"),
        pytest.param(with_hole(OGG, 0.4, 0.6), "clip.ogg", "is damaged: ", id="hole in ogg"),
        pytest.param(
            with_bytes(OGG, len(OGG) // 2, b"\0"), "clip.ogg", "is damaged: the page", id="a byte of ogg"
        ),
        pytest.param(LOST_PAGE, "clip.ogg", "is damaged: pages are missing", id="lost page of ogg"),
        pytest.param(b"", "clip.wav", "cannot decode this sound file (it is empty)", id="empty"),
        pytest.param(
            b"RIFF\x24\0\0\0WAVEfmt ", "clip.wav", "cannot decode this sound file", id="header only"
        ),
        pytest.param(b"<html>404 Not Found</html>", "clip.mp3", "cannot decode this file", id="no media"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, content: bytes, name: str, expected: str) -> None:
    assert complaint(tmp_path, content, name).startswith(expected)


def test_a_length_that_lies_costs_no_memory(tmp_path: Path) -> None:
    endless = with_flac_length(FLAC, 2**36 - 1)
    assert complaint(tmp_path, endless, "clip.flac").startswith("cannot decode this sound file")


@pytest.mark.parametrize("start", [b"RIFF\0\0\0\1AVI LIST", b"\0\0\0\x20ftypisom"], ids=["avi", "mp4"])
def test_a_film_is_not_copied_to_see_that_it_is_no_sound_file(tmp_path: Path, start: bytes) -> None:
    film = start.ljust(2_000_000, b"\0")
    path = tmp_path / "film.dat"
    path.write_bytes(film)
    tracemalloc.start()
    assert read_sound_file(path) is None
    assert read_sound_file(path, film) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize(
    "failure", [ValueError, IndexError, MemoryError, OverflowError, soundfile.SoundFileError]
)
def test_whatever_a_decoder_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure("Error opening <_io.BytesIO object at 0x7fd5dcde8b30>: no luck\nat all")

    monkeypatch.setattr(soundfile, "SoundFile", fail)
    assert complaint(tmp_path, FLAC, "clip.flac") == (
        "cannot decode this sound file (no luck): download or export it again"
    )


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (lambda x: -x, True),
        (lambda x: -0.9 * x, True),
        (lambda x: -0.5 * x, False),
        (lambda x: x, False),
        (lambda x: np.zeros_like(x), False),
        (lambda x: noise(2.0)[-len(x) :], False),
    ],
)
def test_channels_that_cancel_out(other: Callable[[np.ndarray], np.ndarray], expected: bool) -> None:
    assert cancels_out(np.stack([SOUND, other(SOUND).astype(np.float32)])) is expected
    assert not cancels_out(SOUND[None])
    assert not cancels_out(np.zeros((2, 100), np.float32))
