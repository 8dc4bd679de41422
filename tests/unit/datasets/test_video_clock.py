"""What is shown when: cut, late, interrupted and turned videos give the frames and the sound that a player gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.media import cut, write_video
from helpers.timed_media import (
    SOUND_RATE,
    corners,
    seconds_heard,
    seconds_seen,
    write_corners,
    write_growing_video,
    write_hdr_video,
    write_song_with_cover,
    write_timed_video,
    write_widening_sound,
)

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.prepare import PreparedSource, prepare_ave
from fedstill.datasets.decoding.decode import read_audio, read_video_frames

FIVE_MIDDLES = [1, 3, 5, 7, 9]  # of ten seconds


def heard(path: Path) -> list[int | None]:
    return seconds_heard(*read_audio(path))


def seen(path: Path, count: int = 5, start: float = 0.0, end: float | None = None) -> list[int]:
    return seconds_seen(read_video_frames(path, count, start=start, end=end))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv", "mov", "avi", "ts"])
def test_a_plain_recording_tells_its_time(tmp_path: Path, suffix: str) -> None:
    path = write_timed_video(tmp_path / f"plain.{suffix}")
    assert seen(path, 10) == list(range(10))
    assert heard(path)[:10] == list(range(10))


@pytest.mark.parametrize("suffix", ["avi", "mkv", "flv", "ts", "mp4"])
def test_frames_that_are_not_shown_in_the_order_of_decoding(tmp_path: Path, suffix: str) -> None:
    path = write_timed_video(tmp_path / f"plain.{suffix}", codec="libx264")
    assert seen(path, 10) == list(range(10))
    every = seen(path, 100)
    assert every == sorted(every)
    assert all(abs(every.count(second) - 10) <= 3 for second in range(10))


def test_what_an_edit_list_hides_is_not_counted(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "cut.mp4", picture_at=-5.0, sounds_at=[-5.0])
    with av.open(str(path)) as container:
        assert (
            sum(packet.is_discard for packet in container.demux(video=0)) > 40
        )  # an edit list is in the file
    assert seen(path) == [5, 6, 7, 8, 9]
    assert heard(path)[:5] == [5, 6, 7, 8, 9]
    assert seen(path, 2, start=2.0, end=4.0) == [7, 8]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv"])
def test_a_late_sound_is_preceded_by_silence(tmp_path: Path, suffix: str) -> None:
    path = write_timed_video(tmp_path / f"late.{suffix}", sounds_at=[2.0])
    assert heard(path)[:12] == [None, None, *range(10)]
    waveform, rate = read_audio(path)
    first = np.flatnonzero(np.abs(waveform) > 0.05)[0] / rate
    assert first == pytest.approx(2.0, abs=0.08)  # an encoder's delay


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_before_a_late_picture_its_first_frame_is_on_display(tmp_path: Path, suffix: str) -> None:
    path = write_timed_video(tmp_path / f"late.{suffix}", picture_at=2.0)
    assert seen(path, 12) == [0, 0, *range(10)]
    assert seen(path, 2, start=4.0, end=6.0) == [2, 3]
    assert heard(path)[:10] == list(range(10))


def test_a_gap_in_the_sound_is_silence(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "gap.mkv", keep_sound=lambda moment: not 3 <= moment < 6)
    assert heard(path)[:10] == [0, 1, 2, None, None, None, 6, 7, 8, 9]
    waveform, rate = read_audio(path)
    assert len(waveform) / rate == pytest.approx(10.0, abs=0.2)


def test_a_gap_in_the_picture_keeps_the_frame_before_it(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "gap.mkv", keep_picture=lambda moment: not 3 <= moment < 6)
    assert seen(path, 10) == [0, 1, 2, 2, 2, 2, 6, 7, 8, 9]


def test_a_gap_in_both_is_damage(tmp_path: Path) -> None:
    def keep(moment: float) -> bool:
        return not 3 <= moment < 6

    path = write_timed_video(tmp_path / "gap.mkv", keep_sound=keep, keep_picture=keep)
    for read in (read_audio, lambda path: read_video_frames(path, 2)):
        with pytest.raises(DataError, match=r"gap\.mkv: is damaged, [23]\.\d s in its middle have neither"):
            read(path)


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
def test_a_recording_that_starts_at_one_hour_is_whole(tmp_path: Path, suffix: str) -> None:
    path = write_timed_video(tmp_path / f"hour.{suffix}", picture_at=3600.0, sounds_at=[3600.0])
    # Not five: FLV cannot hide the 64 ms that AAC begins with, and their middles lie where two seconds meet.
    assert seen(path, 10) == list(range(10))
    assert heard(path)[:10] == list(range(10))
    assert len(read_audio(path)[0]) / SOUND_RATE == pytest.approx(10.0, abs=0.2)
    with pytest.raises(DataError, match=r"is truncated, the last \d\.\d of 10\.\d s are missing"):
        read_audio(cut(path, 0.6))


def test_the_default_track_is_heard(tmp_path: Path) -> None:
    first = write_timed_video(tmp_path / "first.mkv", 4, sounds_at=[0.0, 0.0], default_sound=0)
    second = write_timed_video(tmp_path / "second.mkv", 4, sounds_at=[0.0, 0.0], default_sound=1)
    assert heard(first)[:4] == [1, 2, 3, 4]
    assert heard(second)[:4] == [0, 1, 2, 3]


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    song = write_song_with_cover(tmp_path / "song.m4a")
    assert heard(song)[:2] == [0, 1]
    with pytest.raises(DataError, match=r"song\.m4a: has no video stream"):
        read_video_frames(song, 2)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), "RG/BW"),
        ((-1, 0, 0, 1), "GR/WB"),
        ((1, 0, 0, -1), "BW/RG"),
        ((-1, 0, 0, -1), "WB/GR"),
        ((0, 1, -1, 0), "BR/WG"),
        ((0, -1, 1, 0), "GW/RB"),
        ((0, 1, 1, 0), "RB/GW"),
        ((0, -1, -1, 0), "WG/BR"),
    ],
)
def test_the_whole_display_matrix_is_applied(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown: str
) -> None:
    (picture,) = read_video_frames(write_corners(tmp_path / "phone.mp4", matrix), 1)
    assert picture.shape == ((64, 48, 3) if matrix[1] else (48, 64, 3))
    assert corners(picture) == shown


def test_pictures_that_change_in_size_are_scaled(tmp_path: Path) -> None:
    frames = read_video_frames(write_growing_video(tmp_path / "call.webm"), 4)
    assert frames.shape == (4, 48, 64, 3)
    assert seconds_seen(frames) == [0, 0, 1, 1]


def test_pictures_that_fill_the_memory_are_smaller_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_growing_video(tmp_path / "call.webm")  # 64 x 48, then 96 x 64 pixels
    monkeypatch.setattr("fedstill.datasets.decoding.video.display_matrix.MOST_PIXELS", 10 * 32 * 24)
    small = read_video_frames(path, 10)
    assert small.shape == (10, 24, 32, 3)
    assert seconds_seen(small) == [0] * 5 + [1] * 5
    monkeypatch.setattr("fedstill.datasets.decoding.video.film.MOST_PIXELS", 80 * 60)
    with pytest.raises(DataError, match=r"call\.webm: cannot decode this file"):
        read_video_frames(path, 10)
    monkeypatch.setattr("fedstill.datasets.decoding.video.film.MOST_PIXELS", 60 * 40)
    with pytest.raises(DataError, match=r"call\.webm: has too many pixels \(64 x 48\): make it smaller"):
        read_video_frames(path, 10)


def test_channels_that_change_are_mixed(tmp_path: Path) -> None:
    waveform, rate = read_audio(write_widening_sound(tmp_path / "radio.aac"))
    assert len(waveform) / rate == pytest.approx(2.1, abs=0.1)
    mono, stereo = (np.abs(part).max() for part in (waveform[: rate // 2], waveform[-rate // 2 :]))
    assert (mono, stereo) == (pytest.approx(0.3, abs=0.03), pytest.approx(0.15, abs=0.03))


def test_hdr_is_mapped_to_the_usual_range(tmp_path: Path) -> None:
    """203 cd/m2 is white in both: 0.58 in PQ, 0.75 in HLG (ITU-R BT.2408)."""
    pq = read_video_frames(write_hdr_video(tmp_path / "pq.mkv", [0.0, 0.44, 0.58], 16), 1)[0, 8, 8::16, 0]
    hlg = read_video_frames(write_hdr_video(tmp_path / "hlg.mkv", [0.0, 0.5, 0.75], 18), 1)[0, 8, 8::16, 0]
    assert pq[0] < 5
    assert hlg[0] < 5
    assert 110 < pq[1] < 180  # 50 cd/m2; 112 without mapping
    assert pq[2] > 240  # 148 without mapping
    assert hlg[2] > 240  # 191 without mapping


def zeroed(path: Path, start: float) -> Path:
    content = bytearray(path.read_bytes())
    first, length = round(start * len(content)), len(content) // 5
    content[first : first + length] = bytes(length)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["flv", "mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize("start", [0.3, 0.5, 0.7])
def test_a_zeroed_fifth_is_damage(tmp_path: Path, suffix: str, start: float) -> None:
    path = zeroed(write_timed_video(tmp_path / f"hole.{suffix}"), start)
    for read in (read_audio, lambda path: read_video_frames(path, 2)):
        with pytest.raises(
            DataError, match=rf"hole\.{suffix}: (is damaged|is truncated|cannot decode)"
        ) as refused:
            read(path)
        assert "\n" not in str(refused.value)


def test_a_picture_of_an_unknown_codec_is_named_and_the_sound_beside_it_is_read(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "odd.avi", 4)
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"QQQQ"))
    assert heard(path)[:4] == list(range(4))
    with pytest.raises(DataError, match=r"odd\.avi: its video stream has a codec that FFmpeg does not know"):
        read_video_frames(path, 2)


@pytest.mark.parametrize("suffix", ["flv", "mkv", "avi"])
def test_a_missing_end_is_named(tmp_path: Path, suffix: str) -> None:
    path = cut(write_timed_video(tmp_path / f"short.{suffix}"), 0.7)
    with pytest.raises(DataError, match=r"is truncated, the last [23]\.\d of 10\.\d s are missing"):
        read_video_frames(path, 2)


def test_a_fragment_that_is_not_complete_is_named(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "stream.mp4", fragmented=True)
    assert seen(path, 10) == list(range(10))
    assert heard(path)[:10] == list(range(10))
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"mdat") + 6])
    with pytest.raises(DataError, match=r"stream\.mp4: is truncated, its last fragment is not complete"):
        read_audio(path)


def test_time_that_starts_anew_beside_a_picture_is_named(tmp_path: Path) -> None:
    def again(start: float) -> Callable[[float], bool]:
        return lambda moment: moment < start

    first = write_timed_video(tmp_path / "first.ts", 4, keep_sound=again(4), keep_picture=again(4))
    second = write_timed_video(tmp_path / "second.ts", 4)
    twice = tmp_path / "twice.ts"
    twice.write_bytes(first.read_bytes() + second.read_bytes())
    for read in (read_audio, lambda path: read_video_frames(path, 2)):
        with pytest.raises(DataError, match=r"twice\.ts: its time starts anew in the middle"):
            read(twice)


def write_ave(root: Path) -> Path:
    """One event (2 s to 4 s, or 4 s to 6 s) in a cut video, one with late sound, a late picture and a broken one."""
    write_timed_video(root / "AVE" / "cut.mp4", picture_at=-5.0, sounds_at=[-5.0])
    write_timed_video(root / "AVE" / "sound.mp4", sounds_at=[2.0])
    write_timed_video(root / "AVE" / "picture.mp4", picture_at=2.0)
    zeroed(write_timed_video(root / "AVE" / "broken.mp4"), 0.4)
    rows = {
        "train": ["Bark&cut&good&2&4", "Bark&broken&good&2&4"],
        "val": ["Bark&picture&good&4&6"],
        "test": ["Bark&sound&good&4&6"],
    }
    for name, lines in rows.items():
        (root / f"{name}Set.txt").write_text("\n".join(lines) + "\n")
    header = "Category&VideoID&Quality&StartTime&EndTime"
    (root / "Annotations.txt").write_text(
        "\n".join([header, *(line for lines in rows.values() for line in lines)]) + "\n"
    )
    return root


def test_ave_events_are_cut_on_the_same_clock(tmp_path: Path) -> None:
    report = prepare_ave(write_ave(tmp_path / "raw"), tmp_path / "out", size=32, workers=1)
    assert [(clip.clip_id, clip.outcome) for clip in report.bad] == [("broken", "corrupt")]
    assert report.bad[0].reason.startswith(str(tmp_path / "raw" / "AVE" / "broken.mp4"))
    source = PreparedSource(tmp_path / "out")
    clips = {info.clip_id: source.load(number) for number, info in enumerate(source.index)}
    seen = {name: seconds_seen(clip.frames) for name, clip in clips.items()}
    heard = {name: seconds_heard(clip.audio, clip.sample_rate) for name, clip in clips.items()}
    assert seen == {"cut": [7] * 5 + [8] * 5, "picture": [2] * 5 + [3] * 5, "sound": [4] * 5 + [5] * 5}
    assert heard == {"cut": [7, 8], "picture": [4, 5], "sound": [2, 3]}


@pytest.mark.parametrize("suffix", ["flv", "mp4", "mov", "avi"])
def test_a_well_formed_file_is_what_ffmpeg_decodes_bit_by_bit(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"plain.{suffix}", frames=20)
    with av.open(str(path)) as container:
        length = container.streams.audio[0].duration or 0
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if suffix in ("mp4", "mov"):  # they say where the sound ends within the last block
        assert 0 < len(sound) - length < 1024
        sound = sound[:length]
    np.testing.assert_array_equal(read_audio(path)[0], sound)
    np.testing.assert_array_equal(read_video_frames(path, 10), pictures[1::2])
    np.testing.assert_array_equal(read_video_frames(path, 4, start=0.5, end=1.3), pictures[6:13:2])
