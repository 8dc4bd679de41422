"""FLAC: whether the length in the header is that of the file.

A program that writes to a pipe leaves 0 there, and a stopped one the length of an earlier moment. The last frame
knows better: its header says at which sample it begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

MAGIC = b"fLaC"
BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # with the header of the first block
LONGEST_SEARCH = 2**16  # bytes at the end of the file
BLOCK_SIZES = (
    {1: 192} | {code: 144 << code for code in range(2, 6)} | {code: 1 << code for code in range(8, 16)}
)


def links(content: bytes) -> list[bytes]:
    """The files that were joined into this one, without what comes before each; usually one."""
    if content.find(MAGIC) == content.rfind(MAGIC):
        return [content]
    begins = [found.start() for found in BEGIN.finditer(content)] or [0]
    return [content[begin:end] for begin, end in zip(begins, [*begins[1:], len(content)], strict=True)]


def has_true_length(link: bytes) -> bool:
    """False if the length is unknown or the last frame seems to lie beyond it; decoding then tells."""
    begin = link.find(MAGIC)
    announced = int.from_bytes(link[begin + 21 : begin + 26], "big") & (2**36 - 1)
    block_size = int.from_bytes(link[begin + 8 : begin + 10], "big")
    ends = (_frame_end(frame[:16], block_size) for frame in _last_frames(link))
    return announced > 0 and next(filter(None, ends), 0) <= announced


def ends_with_frame(link: bytes) -> bool:
    """Whether the last frame is complete, by its checksum. A file without a length is cut otherwise."""
    return any(_frame_end(frame[:16], 1) and not _crc(frame, 16, 0x8005) for frame in _last_frames(link))


def _last_frames(link: bytes) -> Iterator[bytes]:
    """From where a frame may begin to the end of the file, the last one first."""
    end = len(link) - 128 if link[-128:].startswith(b"TAG") else len(link)
    begin, position = max(0, end - LONGEST_SEARCH), end
    while (position := link.rfind(b"\xff", begin, position)) >= 0:
        if link[position + 1 : position + 2] in (b"\xf8", b"\xf9"):
            yield link[position:end]


def _frame_end(header: bytes, block_size: int) -> int:
    """The sample with which the frame of this header ends; 0 if it is none."""
    if len(header) < 16 or header[3] & 1:
        return 0
    further = 8 - (header[4] ^ 0xFF).bit_length()  # ones that begin the number, as in UTF-8
    if further == 1 or further == 8:
        return 0
    number = header[4] & 0x7F >> further
    after = 4 + max(further, 1)
    for byte in header[5:after]:
        number = number << 6 | byte & 0x3F
    code = header[2] >> 4
    own_size = {6: 1, 7: 2}.get(code, 0)  # bytes of a block size that no code stands for
    size = (
        int.from_bytes(header[after : after + own_size], "big") + 1 if own_size else BLOCK_SIZES.get(code, 0)
    )
    after += own_size + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if not size or after >= len(header) or _crc(header[:after], 8, 0x07) != header[after]:
        return 0
    is_variable = header[1] & 1
    return number + size if is_variable else number * block_size + size


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc, table, mask = 0, _crc_table(bits, polynomial), (1 << bits) - 1
    for byte in data:
        crc = table[crc >> bits - 8 ^ byte] ^ crc << 8 & mask
    return crc


@cache
def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    """The remainder of each byte."""
    table = []
    for crc in range(0, 256 << bits - 8, 1 << bits - 8):
        for _ in range(8):
            crc = crc << 1 ^ (polynomial | 1 << bits if crc >> bits - 1 else 0)
        table.append(crc)
    return tuple(table)
