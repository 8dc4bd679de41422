"""Guards what our readers make of a media file: the pictures and the sound that the program ffmpeg plays, and when.

No file may differ unless the reader names it. Each is made here, in code, with its own numbered pictures and noise.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.ffmpeg import Played, play
from helpers.media_cases import CASES, CODECS, Case
from helpers.media_files import Picture, Sound

from fedstill.common.errors import DataError
from fedstill.datasets.decoding.decode import read_audio, read_video_frames

PIXEL = 2.0  # grey levels on average; other roundings of colours make less than one
SOUND_OFF = 0.005  # s
PART = 0.25  # s of sound that are compared at a time
SEARCH = 0.1  # s around it
ALIKE = 0.95  # correlation
SILENCE = 1e-3
LAST_BLOCK = (
    0.025  # s; our sound ends with the edit list, ffmpeg's only with some codecs, else with the last block
)


def test_no_encoder_changes_the_priority_of_the_tests(tmp_path: Path) -> None:
    """At first place: what one leaves behind, all processes of all later tests inherit."""
    for case in CASES:
        if case.name in ("av1.mp4", "av1.webm"):
            case.write(tmp_path)
            assert os.sched_getscheduler(0) == os.SCHED_OTHER


def picture_faults(frames: np.ndarray, moments: np.ndarray, played: Played) -> list[str]:
    """What is wrong with ``frames``, which are to be on display at ``moments`` (s)."""
    if frames.shape[1:] != played.pictures.shape[1:]:
        return [f"pictures of {frames.shape[1:]}, not {played.pictures.shape[1:]}"]
    apart = np.stack([np.abs(frames.astype(np.int16) - one).mean(axis=(1, 2, 3)) for one in played.pictures])
    which, begins = apart.argmin(axis=0), played.times
    faults = [f"pixels differ by {worst:.1f}" for worst in [apart.min(axis=0).max()] if worst > PIXEL]
    lengths = np.append(np.diff(begins), np.inf)
    ends = begins + lengths
    first = np.append(-np.inf, begins[1:])  # before a late picture, its first frame is on display
    off = np.maximum(first[which] - moments, moments - ends[which]) > lengths[which] / 2 + 1e-6
    return faults + [
        f"frame {number} at {moment:.3f} s" for number, moment in zip(which[off], moments[off], strict=True)
    ]


def sound_faults(sound: np.ndarray, rate: int, played: Played) -> list[str]:
    """What is wrong with ``sound``, which is to begin at 0 s."""
    if rate != played.rate:
        return [f"{rate} Hz, not {played.rate}"]
    longer = (len(sound) - len(played.sound)) / rate
    faults = [] if -LAST_BLOCK < longer < SOUND_OFF else [f"longer by {longer:.3f} s"]
    around, size = round(SEARCH * rate), round(PART * rate)
    padded = np.pad(sound, (around, around + size))
    for start in range(0, min(len(sound), len(played.sound)) - size // 2, size):
        part = played.sound[start : start + size]
        place = padded[start : start + len(part) + 2 * around]
        if np.abs(part).max() < SILENCE:
            loudest = np.abs(place[around : around + len(part)]).max()
            faults += [f"no silence at {start / rate:.2f} s"] * bool(loudest >= SILENCE)
            continue
        products = np.fft.irfft(np.fft.rfft(place) * np.conj(np.fft.rfft(part, len(place))), len(place))
        squares = np.append(0, np.square(place, dtype=np.float64).cumsum())
        levels = np.sqrt(np.maximum(squares[len(part) :] - squares[: -len(part)], 1e-6) * (part @ part))
        likeness = products[: len(levels)] / levels
        lag = int(likeness.argmax()) - around
        if abs(lag) > SOUND_OFF * rate or likeness.max() < ALIKE:
            faults.append(f"sound of {start / rate:.2f} s is {lag / rate:.3f} s off, or another")
    return faults


def faults_of(path: Path, case: Case, played: Played) -> list[str]:
    """Pictures are read from the file, sound from its bytes, as from a zip."""
    faults = []
    if case.has(Picture):
        count = 2 * len(played.times) + 1
        end = played.times[-1] + (played.times[-1] - played.times[-2]) / 2
        frames = read_video_frames(path, count, start=0.0, end=end)
        faults += picture_faults(frames, end * (2 * np.arange(count) + 1) / (2 * count), played)
    if case.has(Sound):
        faults += sound_faults(*read_audio(path, path.read_bytes()), played)
    return faults


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_what_ffmpeg_plays_or_named(tmp_path: Path, case: Case) -> None:
    path = case.write(tmp_path)
    if case.named:
        with pytest.raises(DataError, match=rf"^{path}: {case.named}"):
            read_audio(path)
        with pytest.raises(DataError, match=rf"^{path}: {case.named}"):
            read_video_frames(path, 2)
        return
    played = play(path, picture=case.has(Picture), sound=case.has(Sound))
    on_time = replace(played, times=played.times - case.late_in_ffmpeg)
    assert not faults_of(path, case, on_time)


def test_what_differs_is_seen(tmp_path: Path) -> None:
    case = next(case for case in CODECS if case.name == "h264.mkv")
    path = case.write(tmp_path)
    played = play(path, picture=True, sound=True)
    assert not faults_of(path, case, replace(played, times=played.times + 0.019))  # half a frame is 0.02 s
    for different in (
        replace(played, times=played.times + 0.041),
        replace(played, times=played.times - 0.041),
        replace(played, pictures=played.pictures[:, :, ::-1]),
        replace(played, pictures=np.minimum(played.pictures, 252) + np.uint8(3)),
        replace(played, sound=np.roll(played.sound, round(0.006 * played.rate))),
        replace(played, sound=played.sound[: -round(0.006 * played.rate)]),
        replace(played, sound=np.where(np.arange(len(played.sound)) < played.rate // 2, 0, played.sound)),
        replace(played, rate=8000),
    ):
        assert faults_of(path, case, different)
