"""Read a wav, flac, ogg or mp3 file whole, whatever its header announces; its content says what it is.

A length in a header is an estimate. A complete file of a careless writer is read to its end, and a file whose end or
middle is really missing is refused. libsndfile decodes; FFmpeg takes over where libsndfile cannot or would stop early.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from fedstill.datasets.audiovisual.clip import DataError
from fedstill.datasets.audiovisual.decoder_errors import decoder_errors
from fedstill.datasets.audiovisual.image_files import REPLACE
from fedstill.datasets.audiovisual.sound import flac, mpeg, ogg, wav
from fedstill.datasets.audiovisual.sound.ffmpeg import Channels, decode_with_ffmpeg, joined

SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})
BEGINNINGS = (*wav.FORMS, flac.MAGIC, ogg.MAGIC, b"ID3", b"\xff")
BLOCK = 2**26  # samples of all channels per read, so that a header that lies costs no memory
TRIMMED_FRAMES = 3  # of an mp3, at most, are an encoder's delay and padding

Kind = Literal["wav", "flac", "ogg", "mp3"]
Sound = tuple[Channels, int]
"""float32 (channels, samples) and the rate in Hz."""


def read_sound_file(path: Path, data: bytes | None = None) -> Sound | None:
    """float32 (channels, samples) and the rate in Hz; None if the content is another one, such as a video.

    Args:
        path: of the file; its ending decides nothing.
        data: the file's bytes if they are already in memory; ``path`` then only names them.

    Raises:
        DataError: unreadable, truncated or damaged; names the file.
    """
    with decoder_errors(path, "sound file"):
        content = _content(path) if data is None else data
        kind = None if content is None else kind_of(content, path.suffix)
        if content is None or kind is None:
            return None
        if kind == "wav":
            return _read_wav(path, content)
        if kind == "flac":
            return _read_flac(path, content)
        return _read_ogg(path, content) if kind == "ogg" else _read_mp3(path, content)


def kind_of(content: bytes, suffix: str) -> Kind | None:
    """What a file's bytes are; None if they are no sound file that is read here."""
    if not content:
        raise ValueError("it is empty")
    if wav.is_wav(content):
        return "wav"
    if content.startswith(ogg.MAGIC):
        return None if ogg.has_pictures(content) else "ogg"
    if content.startswith(flac.MAGIC, mpeg.end_of_tags(content)):
        return "flac"
    return "mp3" if mpeg.is_mpeg(content, named_so=suffix.lower() == ".mp3") else None


def _content(path: Path) -> bytes | None:
    """The file's bytes; None if its first ones say that it is no sound file, so that no video is loaded whole."""
    with path.open("rb") as file:
        start = file.read(4)
        if start and not start.startswith(BEGINNINGS) and path.suffix.lower() not in SOUND_SUFFIXES:
            return None
        file.seek(0)
        return file.read()


def _read_wav(path: Path, content: bytes) -> Sound:
    complete = wav.with_true_sizes(content)
    if complete is None:
        raise _bad(path, "is truncated")
    read = _libsndfile(complete)
    if (
        read is None or read[0].shape[1] < read[2]
    ):  # a codec that it does not know, or whose length it estimated
        return decode_with_ffmpeg(path, complete)
    return read[:2]


def _read_flac(path: Path, content: bytes) -> Sound:
    return _chain(path, [_read_flac_link(path, link) for link in flac.links(content)])


def _read_flac_link(path: Path, link: bytes) -> Sound:
    if flac.has_true_length(link):
        return _complete(path, _read_announced(link))
    if not flac.ends_with_frame(link):
        raise _bad(path, "is truncated: it ends in the middle of a frame")
    return decode_with_ffmpeg(path, link)


def _read_ogg(path: Path, content: bytes) -> Sound:
    try:
        links = ogg.links(content)
    except ogg.OggDamage as damage:
        raise _bad(path, str(damage)) from damage
    return _chain(path, [_read_ogg_link(path, link) for link in links])


def _read_ogg_link(path: Path, link: bytes) -> Sound:
    read = _libsndfile(link)
    return decode_with_ffmpeg(path, link) if read is None else _complete(path, read)


def _read_mp3(path: Path, content: bytes) -> Sound:
    try:
        chains = mpeg.chains(content)
    except mpeg.MpegDamage as damage:
        raise _bad(path, str(damage)) from damage
    return _chain(path, [_read_frames(path, content[chain.begin : chain.end], chain) for chain in chains])


def _read_frames(path: Path, content: bytes, frames: mpeg.MpegFrames) -> Sound:
    read = _libsndfile(content)
    least = (frames.count - TRIMMED_FRAMES * frames.is_trimmed) * frames.samples
    if read is not None and read[0].shape[1] >= least:  # libsndfile stops where it estimated the end
        return read[:2]
    channels, rate = decode_with_ffmpeg(path, content, strict=False)  # the chain of frames is complete
    if channels.shape[1] < (frames.count - TRIMMED_FRAMES) * frames.samples:
        raise _bad(path, "is damaged: not all of its frames can be decoded")
    return channels, rate


def _chain(path: Path, links: Sequence[Sound]) -> Sound:
    """The links one after the other."""
    if len({rate for _, rate in links}) > 1:
        raise DataError(f"{path}: is a chain of different sample rates: convert it to one rate first")
    return joined([channels for channels, _ in links]), links[0][1]


def _complete(path: Path, read: tuple[Channels, int, int]) -> Sound:
    channels, rate, announced = read
    if channels.shape[1] < announced:
        raise _bad(path, "is truncated")
    return channels, rate


def _libsndfile(content: bytes) -> tuple[Channels, int, int] | None:
    """As ``_read_announced``; None if libsndfile cannot."""
    try:
        return _read_announced(content)
    except (soundfile.LibsndfileError, ValueError):
        return None


def _read_announced(content: bytes) -> tuple[Channels, int, int]:
    """What libsndfile reads, the rate, and how many samples it took the file for: it never reads more."""
    with soundfile.SoundFile(BytesIO(content)) as file:
        announced = file.frames
        size = min(announced, BLOCK // file.channels)
        blocks = [file.read(size, dtype="float32", always_2d=True)]
        done = len(blocks[0])
        while done < announced and len(blocks[-1]):
            blocks.append(file.read(size, dtype="float32", always_2d=True))
            done += len(blocks[-1])
        return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks)).T, int(file.samplerate), announced


def _bad(path: Path, complaint: str) -> DataError:
    return DataError(f"{path}: {complaint}: {REPLACE}")
