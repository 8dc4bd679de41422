"""Ogg: the pages of a file, and the links of a chain.

A page has a number and a checksum, so each missing or damaged one is noticed; decoders skip such pages without
a word. Files may also be chained, one complete file after the other (radio recordings, joined files); libsndfile
reads the first only, so a chain is taken apart here.
"""

from __future__ import annotations

import zlib

from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.files.faults import TRUNCATED

MAGIC = b"OggS"
PICTURE_CODECS = (b"\x80theora", b"BBCD", b"OVP80", b"\x01video", b"\x8bJNG", b"\x8aMNG")
LONGEST_PADDING = 4096  # bytes after the last page
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def has_pictures(content: bytes) -> bool:
    """Whether a stream that begins at the start is a video."""
    position = 0
    while (page := content[position : position + 27])[:4] == MAGIC and len(page) == 27 and page[5] & 2:
        body = position + 27 + page[26]
        if content.startswith(PICTURE_CODECS, body):
            return True
        position = _page_end(content, position)
    return False


def links(content: bytes) -> list[bytes]:
    """The links of a chain; a file without a chain is its only link.

    Raises:
        MediaError: the last page is cut, a page is missing, or one does not match its checksum.
    """
    begins: list[int] = []
    numbers: dict[bytes, int] = {}  # of the next page, by stream
    position, in_header, ended = 0, False, False
    while position < len(content):
        if content[position : position + 4] != MAGIC:
            if ended and len(content) - position <= LONGEST_PADDING and MAGIC not in content[position:]:
                break
            raise MediaError(f"is damaged: no page begins at byte {position} of {len(content)}")
        end = _page_end(content, position)
        if end > len(content):
            raise MediaError("is truncated: its last page is not complete", fault=TRUNCATED)
        is_first = bool(content[position + 5] & 2)
        stream = content[position + 14 : position + 18]
        number = int.from_bytes(content[position + 18 : position + 22], "little")
        if is_first and not in_header:
            begins.append(position)
            numbers.clear()
        if not is_first and number != numbers.get(stream, number):
            raise MediaError(f"is damaged: pages are missing before byte {position} of {len(content)}")
        if _checksum(content, position, end) != int.from_bytes(
            content[position + 22 : position + 26], "little"
        ):
            raise MediaError(f"is damaged: the page at byte {position} does not match its checksum")
        numbers[stream], in_header, ended = number + 1, is_first, bool(content[position + 5] & 4)
        position = end
    ends = [*begins[1:], len(content)]
    if len(begins) < 2:
        return [content]
    return [content[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _page_end(content: bytes, position: int) -> int:
    """Where the page ends; beyond the file if its header is cut."""
    body = position + 27 + content[position + 26] if position + 27 <= len(content) else len(content) + 1
    return body + sum(content[position + 27 : body])


def _checksum(content: bytes, begin: int, end: int) -> int:
    """CRC-32 with the most significant bit first, from zlib's, which begins with the least significant one."""
    page = (content[begin : begin + 22] + bytes(4) + content[begin + 26 : end]).translate(_REVERSED)
    crc = zlib.crc32(page, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "big").translate(_REVERSED), "little")
