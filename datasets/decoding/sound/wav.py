"""WAV: where the samples of a file really end.

Headers are written first, so a program that writes to a pipe, or is stopped, leaves a size that is a guess: 0, about
2 GiB or 4 GiB, the size of the whole file, or that of an earlier moment. The sizes are therefore compared with the
file, and only a definite size that the file does not reach means that its end is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.files.faults import TRUNCATED

FORMS = (b"RIFF", b"RIFX", b"RF64", b"BW64")
LARGE_FORMS = (b"RF64", b"BW64")
GUESSES = (range(2**31 - 2**16, 2**31 + 2**16), range(2**32 - 2**16, 2**32), range(2**63 - 2**16, 2**64))
"""Sizes that mean "unknown": the largest numbers of 31, 32, 63 and 64 bits, less a header or rounded."""
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS", b"LIST", b"id3 ", b"_PMX", b"bext", b"JUNK", b"<")
"""How the data of taggers begins, which may follow the samples, often with a wrong size."""
SHORTEST_TAIL = 1024  # bytes; fewer after the announced end are somebody's tag rather than sound


def is_wav(content: bytes) -> bool:
    """Whether these are the bytes of a WAV, or its first twelve."""
    return content[:4] in FORMS and content[8:12] == b"WAVE"


def with_true_sizes(content: bytes) -> bytes:
    """The same sound with a true header, ``content`` itself if it has one.

    A file without format or data chunk is left as it is, for the decoder to complain about.

    Raises:
        MediaError: its end is missing.
    """
    order = _byte_order(content)
    chunks: dict[bytes, tuple[int, int]] = {}
    for name, begin, size in _chunks(content, 12):
        chunks.setdefault(name, (begin, size))
        if name == b"data":
            break
    if b"fmt " not in chunks or b"data" not in chunks:
        return content
    begin, announced = chunks[b"data"]
    large = content[:4] in LARGE_FORMS
    if large and announced == 2**32 - 1 and b"ds64" in chunks:
        sizes = chunks[b"ds64"][0]
        announced = int.from_bytes(content[sizes + 8 : sizes + 16], order)
    actual = _actual_size(content, begin, announced)
    surplus = int.from_bytes(content[4:8], order) + 8 - len(content)
    if actual == announced and (large or 0 <= surplus <= actual % 2):  # the last padding may be absent
        return content
    return _write(content, chunks, begin, actual)


def _write(content: bytes, chunks: dict[bytes, tuple[int, int]], begin: int, size: int) -> bytes:
    """A plain file of the format chunks and ``size`` bytes of samples from ``begin``."""
    order = _byte_order(content)
    body = b"WAVE"
    for name in (b"fmt ", b"fact"):
        if name in chunks:
            start, length = chunks[name]
            body += name + length.to_bytes(4, order) + content[start : start + length] + bytes(length % 2)
    body += b"data" + size.to_bytes(4, order)
    form = b"RIFX" if order == "big" else b"RIFF"
    return form + (len(body) + size).to_bytes(4, order) + body + content[begin : begin + size]


def _actual_size(content: bytes, begin: int, announced: int) -> int:
    """How many bytes of samples there are. Raises MediaError if fewer than were certainly written."""
    available = len(content) - begin
    if announced <= available:
        tail = available - announced
        stale = not announced or tail > SHORTEST_TAIL  # from before the samples were written
        return available if stale and not _is_no_sound(content, begin + announced) else announced
    guessed = any(announced in sizes for sizes in GUESSES) or announced in (len(content), len(content) - 8)
    if not guessed:
        raise MediaError("is truncated", fault=TRUNCATED)
    return available


def _is_no_sound(content: bytes, begin: int) -> bool:
    """Whether what begins there is the end of the file, padding, a tag, or further chunks up to the end."""
    if begin >= len(content) or content.startswith(TAGS, begin) or not content[begin:].strip(b"\0"):
        return True
    return any(_ends_with_file(content, start) for start in (begin, begin + 1))  # without and with padding


def _ends_with_file(content: bytes, begin: int) -> bool:
    end = begin
    for _, start, size in _chunks(content, begin):
        end = start + size
    return end > begin and abs(len(content) - end) <= 1


def _chunks(content: bytes, position: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin, announced size) of each chunk; of odd ones, the padding may be absent."""
    order = _byte_order(content)
    while _is_name(content[position : position + 4]) and position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], order)
        yield content[position : position + 4], position + 8, size
        position += 8 + size
        if size % 2 and not (_is_name(content[position : position + 4]) and content[position]):
            position += 1


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _byte_order(content: bytes) -> Literal["big", "little"]:
    return "big" if content[:4] == b"RIFX" else "little"
