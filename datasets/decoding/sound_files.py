"""Sound files by their path: their content decides what they are, and each fault is one line that names the file."""

from __future__ import annotations

from pathlib import Path

from fedstill.datasets.decoding.decoder_errors import decoder_errors
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.sound.reader import HEAD_BYTES, Sound, kind_of, may_be_sound, read_sound
from fedstill.datasets.files.faults import EMPTY

SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})


def read_sound_file(path: Path, data: bytes | None = None) -> Sound | None:
    """float32 (channels, samples) and the rate in Hz; None if the content is another one, such as a video.

    Args:
        path: of the file.
        data: the file's bytes if they are already in memory; ``path`` then only names them.

    Raises:
        DataError: unreadable, truncated or damaged; names the file.
    """
    with decoder_errors(path, "sound file"):
        content = _content(path) if data is None else data
        if content is None:
            return None
        if not content:
            raise MediaError("cannot decode this sound file (it is empty)", fault=EMPTY)
        kind = kind_of(content, is_named_mp3=path.suffix.lower() == ".mp3")
        return None if kind is None else read_sound(content, kind)


def _content(path: Path) -> bytes | None:
    """The file's bytes; None if its first ones say that it is no sound file: a video may be larger than the memory."""
    with path.open("rb", buffering=0) as file:
        head = file.read(HEAD_BYTES)
        if head and not may_be_sound(head) and path.suffix.lower() not in SOUND_SUFFIXES:
            return None
        file.seek(0)
        return file.read()
