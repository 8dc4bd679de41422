"""FFmpeg on one file: open it, and choose the picture and the sound that a player would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from fedstill.datasets.decoding.media.error import MediaError

Kind = Literal["audio", "video"]
Source = Path | bytes
"""A file, or its bytes if they are already in memory."""

NO_MOVING_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails
"""Pictures of a song's cover or of a chapter."""


@contextmanager
def opened(source: Source) -> Iterator[InputContainer]:
    """The open file. Raises MediaError for what PyAV does not expect, and FFmpeg's errors as they are."""
    file = BytesIO(source) if isinstance(source, bytes) else str(source)
    with av.open(file, "r", metadata_errors="replace") as container:
        try:
            yield container
        except IndexError as error:  # PyAV's, at a packet of a track that was not there before
            raise MediaError("is damaged, a track begins in its middle") from error


def picture_of(container: InputContainer) -> VideoStream | None:
    """The video track that a player shows: the first one marked as default, else the first."""
    streams = [stream for stream in container.streams.video if not stream.disposition & NO_MOVING_PICTURE]
    return next(filter(_is_default, streams), next(iter(streams), None))


def sound_of(container: InputContainer) -> AudioStream | None:
    """The audio track that a player plays: the first one marked as default, else the first."""
    streams = container.streams.audio
    return next(filter(_is_default, streams), next(iter(streams), None))


def _is_default(stream: AudioStream | VideoStream) -> bool:
    return bool(stream.disposition & Disposition.default)
