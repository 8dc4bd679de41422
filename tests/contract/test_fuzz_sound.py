"""Guards the reading of sound files against anything: mutated files of every kind are read or refused in one line.

What comes back is a finite waveform, or a DataError that begins with the file's name. Nothing hangs, and no header
makes the reader ask for memory that the file cannot fill.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzz import FACTOR
from helpers.sound_files import encoded, encoded_by_ffmpeg, mp3, noise, with_flac_length

from fedstill.common.errors import DataError
from fedstill.datasets.decoding.decode import read_audio

MUTATED = 40 * FACTOR  # of each file
LONGEST = 5.0  # s of processor time for one file; they take milliseconds
SECONDS = 1.0
MOST_SAMPLES = 100 * 48_000
SOUND = noise(SECONDS)
FILES = {
    "pcm.wav": encoded(SOUND, "WAV"),
    "float.wav": encoded(SOUND, "WAV", "FLOAT"),
    "adpcm.wav": encoded(SOUND, "WAV", "IMA_ADPCM"),
    "gsm.wav": encoded(SOUND, "WAV", "GSM610", 8000),
    "rf64.wav": encoded(SOUND, "RF64"),
    "plain.flac": encoded(SOUND, "FLAC"),
    "piped.flac": with_flac_length(encoded(SOUND, "FLAC"), 0),
    "vorbis.ogg": encoded(SOUND, "OGG"),
    "opus.ogg": encoded(SOUND, "OGG", "OPUS"),
    "chained.ogg": 2 * encoded(SOUND, "OGG"),
    "xing.mp3": mp3(SOUND, xing=True),
    "plain.mp3": mp3(SOUND, xing=False),
    "joined.mp3": 2 * mp3(SOUND, xing=True),
    "sound.m4a": encoded_by_ffmpeg(SOUND, "aac", "ipod"),
}
NUMBERS = (bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0")


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four injuries, half of them near the start, where headers are."""
    mutated = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not mutated:
            break
        place = rng.randrange(min(len(mutated), rng.choice((80, len(mutated)))))
        other, length = rng.randrange(len(mutated)), rng.randint(1, 400)
        match rng.choice(("flip", "cut", "zero", "swap", "number", "remove", "repeat")):
            case "flip":
                mutated[place] ^= 1 << rng.randrange(8)
            case "cut":
                del mutated[max(place, other) :]
            case "zero":
                end = min(len(mutated), place + rng.choice((length, len(mutated) // 5)))
                mutated[place:end] = bytes(end - place)
            case "swap":
                mutated[place : place + length], mutated[other : other + length] = (
                    mutated[other : other + length],
                    mutated[place : place + length],
                )
            case "number":
                mutated[place : place + 4] = rng.choice(NUMBERS)
            case "remove":
                del mutated[place : place + length]
            case "repeat":
                mutated[place:place] = mutated[other : other + length]
    return bytes(mutated)


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_read_or_refused_in_one_line(name: str) -> None:
    rng = random.Random(name)
    path = Path("zip") / name
    complaints = []
    for _ in range(MUTATED):
        content = mutate(FILES[name], rng)
        begin = time.process_time()
        try:
            waveform, rate = read_audio(path, content)
        except DataError as error:
            complaints.append(str(error))
        else:
            assert waveform.dtype == np.float32
            assert 0 < len(waveform) < MOST_SAMPLES
            assert np.isfinite(waveform).all()
            assert rate > 0
        assert time.process_time() - begin < LONGEST
    assert len(complaints) > MUTATED // 5
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in complaints)
    assert not any("BytesIO" in line for line in complaints)


def test_what_is_mutated_is_read_otherwise() -> None:
    for name, content in FILES.items():
        assert len(read_audio(Path("zip") / name, content)[0]) > 0
