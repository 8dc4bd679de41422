"""FLAC: whether the length in the header is that of the file.

A program that writes to a pipe leaves 0 there, and a stopped one the length of an earlier moment. The last frame
knows better: its header says at which sample it begins.
"""

from __future__ import annotations

import re

MAGIC = b"fLaC"
LONGEST_SEARCH = 2**16  # bytes at the end of the file
FRAME = re.compile(rb"\xff[\xf8\xf9]")
BLOCK_SIZES = (
    {1: 192} | {code: 144 << code for code in range(2, 6)} | {code: 1 << code for code in range(8, 16)}
)


def has_true_length(content: bytes, begin: int) -> bool:
    """False if the length is unknown or the last frame seems to lie beyond it; decoding then tells.

    Args:
        content: of the file.
        begin: where its magic word is; tags may come before.
    """
    announced = int.from_bytes(content[begin + 21 : begin + 26], "big") & (2**36 - 1)
    block_size = int.from_bytes(content[begin + 8 : begin + 10], "big")
    return announced > 0 and _last_sample(content, block_size) <= announced


def _last_sample(content: bytes, block_size: int) -> int:
    """The sample with which the last frame ends; 0 if no frame is found."""
    tail = content[-LONGEST_SEARCH:]
    ends = (
        _frame_end(tail[found.start() :][:16], block_size) for found in reversed(list(FRAME.finditer(tail)))
    )
    return next(filter(None, ends), 0)


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
    if not size or after >= len(header) or _crc8(header[:after]) != header[after]:
        return 0
    is_variable = header[1] & 1
    return number + size if is_variable else number * block_size + size


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7 if crc & 0x80 else crc << 1) & 0xFF
    return crc
