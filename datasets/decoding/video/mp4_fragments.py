"""Whether a fragmented MP4 (of a stream, or of a recorder that may be stopped) ends inside a fragment.

Such a file does not say how long it is, and FFmpeg takes a cut in its last fragment for a normal end. The boxes of
ISO/IEC 14496-12, 4.2, know their sizes.
"""

from __future__ import annotations

import os
from io import BytesIO

from fedstill.datasets.decoding.media.file import Source

FRAGMENT = b"moof"
HEADER, LARGE_HEADER = 8, 16  # bytes


def ends_in_a_fragment(source: Source) -> bool:
    """Whether the last box of a file with fragments is longer than what is there."""
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        position, fragments = 0, 0
        while position + HEADER <= length:
            file.seek(position)
            header = file.read(LARGE_HEADER)
            size = int.from_bytes(header[:4], "big")
            if size == 1:
                size = int.from_bytes(header[8:], "big")
            elif size == 0:  # to the end of the file
                return False
            if size < HEADER:
                return False  # no box: something was appended
            fragments += header[4:8] == FRAGMENT
            position += size
        return fragments > 0 and position > length
