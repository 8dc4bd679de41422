"""Read the bytes of a wav, flac, ogg or mp3 file whole, whatever its header announces.

A length in a header is an estimate. A complete file of a careless writer is read to its end, and a file whose end or
middle is really missing is refused. libsndfile decodes; FFmpeg takes over where libsndfile cannot or would stop early.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Literal

import numpy as np
import soundfile

from fedstill.datasets.decoding.media.channels import Channels, joined
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.sound import flac, mpeg, ogg, wav
from fedstill.datasets.files.faults import TRUNCATED

HEAD_BYTES = 12
"""How much of a file tells whether it is one of these."""
BEGINNINGS = (flac.MAGIC, ogg.MAGIC, b"ID3", b"\xff")
BLOCK = 2**26  # samples of all channels per read, so that a header that lies costs no memory
TRIMMED_FRAMES = 3  # of an mp3, at most, are an encoder's delay and padding

Kind = Literal["wav", "flac", "ogg", "mp3"]
Sound = tuple[Channels, int]
"""float32 (channels, samples) and the rate in Hz."""


def may_be_sound(head: bytes) -> bool:
    """Whether a regular sound file begins with ``head``, its first ``HEAD_BYTES``; an mp3 may begin otherwise."""
    return wav.is_wav(head) or head.startswith(BEGINNINGS)


def kind_of(content: bytes, *, is_named_mp3: bool = False) -> Kind | None:
    """What a file's bytes are; None if they are something else, such as a video. A name only helps with odd mp3s."""
    if wav.is_wav(content):
        return "wav"
    if content.startswith(ogg.MAGIC):
        return None if ogg.has_pictures(content) else "ogg"
    if content.startswith(flac.MAGIC, mpeg.end_of_tags(content)):
        return "flac"
    return "mp3" if mpeg.is_mpeg(content, is_named_so=is_named_mp3) else None


def read_sound(content: bytes, kind: Kind) -> Sound:
    """Decode a file of this kind.

    Raises:
        MediaError: its end, its beginning or something in the middle is missing.
        Exception: whatever the decoders raise.
    """
    match kind:
        case "wav":
            return _read_wav(wav.with_true_sizes(content))
        case "flac":
            return _chain([_read_flac(link) for link in flac.links(content)])
        case "ogg":
            return _chain([_read_ogg(link) for link in ogg.links(content)])
        case "mp3":
            chains = mpeg.chains(content)
            return _chain([_read_mp3(content[frames.begin : frames.end], frames) for frames in chains])


def _read_wav(content: bytes) -> Sound:
    read = _libsndfile(content)
    if read is None or read[0].shape[1] < read[2]:  # a codec of unknown kind, or of unknown length
        return _with_ffmpeg(content)
    return read[:2]


def _read_flac(link: bytes) -> Sound:
    if flac.has_true_length(link):
        return _complete(_read_announced(link))
    if not flac.ends_with_frame(link):
        raise MediaError("is truncated: it ends in the middle of a frame", fault=TRUNCATED)
    return _with_ffmpeg(link)


def _read_ogg(link: bytes) -> Sound:
    read = _libsndfile(link)
    return _with_ffmpeg(link) if read is None else _complete(read)


def _read_mp3(content: bytes, frames: mpeg.MpegFrames) -> Sound:
    read = _libsndfile(content)
    least = (frames.count - TRIMMED_FRAMES * frames.is_trimmed) * frames.samples
    if read is not None and read[0].shape[1] >= least:  # libsndfile stops where it estimated the end
        return read[:2]
    channels, rate = _with_ffmpeg(content, is_strict=False)  # the chain of frames is complete
    if channels.shape[1] < (frames.count - TRIMMED_FRAMES) * frames.samples:
        raise MediaError("is damaged: not all of its frames can be decoded")
    return channels, rate


def _chain(links: Sequence[Sound]) -> Sound:
    """The links one after the other."""
    if len({rate for _, rate in links}) > 1:
        raise MediaError("is a chain of different sample rates", remedy="convert it to one rate first")
    return joined([channels for channels, _ in links]), links[0][1]


def _complete(read: tuple[Channels, int, int]) -> Sound:
    channels, rate, announced = read
    if channels.shape[1] < announced:
        raise MediaError("is truncated", fault=TRUNCATED)
    return channels, rate


def _with_ffmpeg(content: bytes, *, is_strict: bool = True) -> Sound:
    from fedstill.datasets.decoding.sound.ffmpeg import decode_with_ffmpeg  # not in every install

    return decode_with_ffmpeg(content, is_strict=is_strict)


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
        samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return samples.T, int(file.samplerate), announced
