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

from fedstill.datasets.audiovisual.clip import DataError
from fedstill.datasets.audiovisual.decoder_errors import decoder_errors
from fedstill.datasets.audiovisual.image_files import REPLACE

Kind = Literal["audio", "video"]

NO_MOVING_PICTURE = (
    Disposition.attached_pic | Disposition.timed_thumbnails
)  # the cover of a song, a chapter's


@contextmanager
def opened(path: Path, data: bytes | None) -> Iterator[InputContainer]:
    """The open file, or ``data`` in its place. Raises DataError, also for what fails inside the block."""
    source = str(path) if data is None else BytesIO(data)
    with decoder_errors(path), av.open(source, "r", metadata_errors="replace") as container:
        try:
            yield container
        except (
            IndexError
        ) as error:  # PyAV's, at a packet of a track that was not there when the file was opened
            raise DataError(f"{path}: is damaged, a track begins in its middle: {REPLACE}") from error


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
