"""MP3 (and layers I and II): how much sound a file holds, counted frame by frame.

The format has no length. Encoders write one into a first frame without sound (Xing, Info or VBRI). Streams have none,
and a decoder then divides the size of the file by the rate of the first frame, which is wrong for every file of
variable rate. The frames' headers are enough to know: they form a chain, each says where the next one begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.files.faults import TRUNCATED

ZEROS = re.compile(rb"\0+")
LATEST_START = 4096  # bytes of something else before the first frame
CHAIN = 3  # headers in a row that make it a real one: two bytes look like a header once in a few thousand
LONGEST_PADDING = 512  # bytes of something else after the last frame
EMPTY = bytes(9)  # after the header of a frame without sound, such as one that tells the length
RATES = (44_100, 48_000, 32_000)
BITRATES = {  # kbit/s by (is MPEG-1, layer)
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True, slots=True)
class MpegFrames:
    """A chain of frames.

    Attributes:
        begin, end: its place in the file.
        count: frames with sound.
        samples: per frame and channel.
        is_trimmed: its first frame says so much about the encoder that a decoder cuts delay and padding off.
    """

    begin: int
    end: int
    count: int
    samples: int
    is_trimmed: bool


def is_mpeg(content: bytes, *, is_named_so: bool = False) -> bool:
    """Whether a chain of frames begins at the start, or after tags or zeros.

    A recorded stream may begin in the middle of a frame; that is looked for only if the file is ``is_named_so``, since
    videos hold such chains, too.
    """
    tags = end_of_tags(content)
    first = _first_frame(content, tags)
    return first is not None and (tags > 0 or is_named_so or not content[:first].strip(b"\0"))


def end_of_tags(content: bytes) -> int:
    """Where the ID3 tags at the start end."""
    position = 0
    while content[position : position + 3] == b"ID3" and position + 10 <= len(content):
        position += _tag_size(content, position)
    return position


def chains(content: bytes) -> list[MpegFrames]:
    """The files that were joined into this one, usually one, of a file for which ``is_mpeg`` holds.

    Raises:
        MediaError: something lacks at the start, in the middle or at the end.
    """
    tags = end_of_tags(content)
    position = _first_frame(content, tags) or 0
    length, samples, kind = _frame(content, position)
    written = _announced(content, position)
    if position - tags > length and written is None:  # more than the rest of a frame
        raise MediaError(f"is damaged: it begins with {position - tags} bytes that are no sound")
    if written is not None:
        position += length
    begins, announced, counts = [0], [written], [0]
    size = len(content)
    while position < size:
        length, _, found = _frame(content, position)
        if found == kind and position + length <= size:
            is_empty = content.startswith(EMPTY, position + 4)
            if is_empty and (written := _announced(content, position)) is not None:
                begins.append(position)
                announced.append(written)
                counts.append(-1)
            counts[-1] += 1
            position += length
        elif tag := _tag_size(content, position):
            position += tag
        else:
            break
    for count, written in zip(counts, announced, strict=True):
        if written and count + 1 < written:
            raise MediaError(f"is truncated: it holds {count} of {written} frames", fault=TRUNCATED)
    if not announced[-1] or counts[-1] > announced[-1] + 1:  # else all is there, and no sound follows
        _check_end(content, position, kind)
    ends = [*begins[1:], size]
    return [
        MpegFrames(begin, end, count, samples, written is not None)
        for begin, end, count, written in zip(begins, ends, counts, announced, strict=True)
    ]


def _check_end(content: bytes, position: int, kind: int) -> None:
    """Raises MediaError unless the chain of frames may stop there."""
    rest = len(content) - position
    length, _, found = _frame(content, position)
    if length > rest > 0 and found == kind:
        raise MediaError("is truncated: it ends in the middle of a frame", fault=TRUNCATED)
    if rest > LONGEST_PADDING or _first_frame(content, position) is not None:
        raise MediaError(f"is damaged: after {position} of {len(content)} bytes, no sound follows")


def _first_frame(content: bytes, start: int) -> int | None:
    """The begin of the first chain of frames at or soon after ``start``, or after the zeros there."""
    if zeros := ZEROS.match(content, start):
        start = zeros.end()
    position = content.find(b"\xff", start, start + LATEST_START)
    while position >= 0:
        if _is_chain(content, position):
            return position
        position = content.find(b"\xff", position + 1, start + LATEST_START)
    return None


def _is_chain(content: bytes, position: int) -> bool:
    length, _, kind = _frame(content, position)
    for number in range(CHAIN):
        length, _, found = _frame(content, position)
        if not length or found != kind:
            return number > 0 and position >= len(content)
        position += length
    return True


def _frame(content: bytes, position: int) -> tuple[int, int, int]:
    """The frame that begins there, see ``_described``; zeros if none does."""
    if position + 4 > len(content) or content[position] != 0xFF:
        return 0, 0, 0
    return _described(content[position + 1], content[position + 2])


@cache
def _described(second: int, third: int) -> tuple[int, int, int]:
    """Bytes, samples per channel and kind of a frame by the second and third byte of its header; zeros if it is none.

    All frames of a file are of one kind: version, layer and sample rate. Frames of free format (no bitrate in the
    header) have no length that one could know, and count as none.
    """
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bitrate, rate, padding = third >> 4, third >> 2 & 3, third >> 1 & 1
    if second < 0xE0 or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0, 0, 0
    is_first = version == 3
    bits = BITRATES[is_first, layer][bitrate - 1] * 1000
    hertz = RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    kind = (second & 0x1E) << 8 | third & 0x0C
    if layer == 1:
        return (12 * bits // hertz + padding) * 4, 384, kind
    samples = 1152 if is_first or layer == 2 else 576
    return samples // 8 * bits // hertz + padding, samples, kind


def _announced(content: bytes, position: int) -> int | None:
    """The frame count of a Xing, Info or VBRI header in the frame there; 0 if it leaves it out."""
    is_first, is_mono = content[position + 1] >> 3 & 3 == 3, content[position + 3] >> 6 == 3
    xing = position + 4 + ((17 if is_mono else 32) if is_first else (9 if is_mono else 17))
    if content[xing : xing + 4] in (b"Xing", b"Info"):
        has_count = content[xing + 7] & 1
        return int.from_bytes(content[xing + 8 : xing + 12], "big") if has_count else 0
    vbri = position + 36
    if content[vbri : vbri + 4] == b"VBRI":
        return int.from_bytes(content[vbri + 14 : vbri + 18], "big")
    return None


def _tag_size(content: bytes, position: int) -> int:
    """Bytes of the ID3, APE or Lyrics3 tag that begins there, 0 if none does."""
    match content[position : position + 3]:
        case b"ID3":
            size = 0
            for byte in content[position + 6 : position + 10]:
                size = size << 7 | byte & 0x7F
            return 10 + size + (10 if content[position + 5 : position + 6] >= b"\x10" and size else 0)
        case b"TAG":
            return 128
        case b"LYR" if content[position : position + 11] == b"LYRICSBEGIN":
            return max(0, content.find(b"LYRICS200", position) + 9 - position)
        case b"APE" if content[position : position + 8] == b"APETAGEX":
            return 32 + int.from_bytes(content[position + 12 : position + 16], "little")
    return 0
