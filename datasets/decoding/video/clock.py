"""When things of a file are shown: one clock for its picture and its sound, from time stamps, without decoding.

The clock starts at the first moment that a player shows. Packets that an edit list hides, the offset of a recording
that began an hour ago, and a track that starts late are all in the time stamps; counting frames or samples would miss
them. The whole file is read, so that one which ends early or has a hole (FFmpeg passes over both) is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import av
from av.audio.stream import AudioStream
from av.codec.context import CodecContext
from av.container import InputContainer
from av.video.stream import VideoStream

from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.media.file import Kind, Source, opened, picture_of, sound_of
from fedstill.datasets.decoding.video.mp4_fragments import ends_in_a_fragment
from fedstill.datasets.files.faults import NO_PICTURE, NO_SOUND, TRUNCATED, UNDECODABLE

LENGTH_IN_HEADER = frozenset(
    {"mov", "matroska", "flv", "avi", "asf", "ogg", "wav", "w64", "aiff", "caf", "mxf"}
)
"""Formats whose header says how long they are. FFmpeg guesses the length of others from the bit rate."""
LENGTH_IS_LAST_MOMENT = frozenset({"matroska", "flv"})
"""FFmpeg, among others, writes the last time stamp for the length there, also if the first is not zero."""
DECODING_TIMES = frozenset({"avi"})
"""Formats that say when a frame is decoded, which is in another order than they are shown."""
WITHOUT_PADDING = frozenset({"matroska", "flv", "avi"})
"""Formats whose packets follow each other with little between them."""
NEVER_ZERO = frozenset(
    (
        *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "vp6f", "flv", "h263", "mpeg4"),
        *("mpeg1video", "mpeg2video", "mjpeg", "theora"),
        *("aac", "mp3", "mp3float", "opus", "vorbis", "ac3", "eac3", "flac", "alac"),
    )
)
"""FFmpeg's names of decoders of which no packet consists of zeros; silence in PCM does."""
SMALLEST_HOLE = 4096  # bytes
SMALLEST_PACKET = 16  # bytes; shorter ones are not looked at
JUMP_BACK = 0.5  # s; time stamps that go back further start anew
# Announced lengths are not exact, and checksums exist for the rest.
MISSING_SECONDS = 0.25
MISSING_SHARE = 0.1
_ABSENT = {"video": NO_PICTURE, "audio": NO_SOUND}


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds by the file's time stamps.

    ``zero``: the first displayed moment of picture and sound. ``begin``, ``end``: of the stream asked for.
    ``interval``: between two of its packets on average, ``shortest`` at least. ``edited_end``: where an edit list ends
    it, often within its last packet; infinite in formats without one. ``times``: of its frames in order, if the
    container is one that does not say which frame they belong to.
    """

    zero: float
    begin: float
    end: float
    interval: float
    shortest: float
    edited_end: float = math.inf
    times: tuple[float, ...] = ()


def read_timeline(source: Source, kind: Kind) -> Timeline:
    """When the file's ``kind`` stream is shown.

    Raises:
        MediaError: no such stream, nothing in it, or the file ends early or has a hole.
    """
    with opened(source) as container:
        picture, sound = picture_of(container), sound_of(container)
        wanted = picture if kind == "video" else sound
        if wanted is None:
            raise MediaError(f"has no {kind} stream", fault=_ABSENT[kind])
        if not _decoder(wanted):
            raise MediaError(f"its {kind} stream has a codec that FFmpeg does not know", fault=UNDECODABLE)
        chosen = [stream for stream in (picture, sound) if stream is not None]
        scan = _Scan(container, chosen)
        spans = scan.spans[wanted.index]
        if not spans:
            raise MediaError(f"its {kind} stream holds nothing with a time stamp", fault=_ABSENT[kind])
        _check_complete(container, scan)
        if "mp4" in container.format.name and ends_in_a_fragment(source):
            raise MediaError("is truncated, its last fragment is not complete", fault=TRUNCATED)
        begins = sorted(begin for begin, _ in spans)
        times = tuple(begins) if container.format.name in DECODING_TIMES else ()
        starts = {
            stream.type: _first_shown(stream, scan.spans[stream.index])
            for stream in chosen
            if scan.spans[stream.index]
        }
        edited_end = _edited_end(container, wanted)
    first, last, end = begins[0], begins[-1], max(end for _, end in spans)
    interval = (last - first) / (len(spans) - 1) if len(spans) > 1 else end - first
    shortest = min((after - before for before, after in pairwise(begins)), default=interval)
    if end == last:  # the last packet has no duration: assume that of the others
        end += interval
    end = edited_end if last < edited_end < end else end
    return Timeline(min(starts.values()), starts[kind], end, interval, shortest, edited_end, times)


def _first_shown(stream: AudioStream | VideoStream, spans: Sequence[tuple[float, float]]) -> float:
    """FFmpeg's start time knows the samples of a sound's first packets that are not played."""
    if stream.type == "audio" and stream.start_time is not None and stream.time_base is not None:
        return float(stream.start_time * stream.time_base)
    return min(spans)[0]


def _edited_end(container: InputContainer, stream: AudioStream | VideoStream) -> float:
    """See ``Timeline``; FFmpeg hides whole packets behind it, but not the rest of one."""
    if "mp4" not in container.format.name or not stream.duration or stream.time_base is None:
        return math.inf
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _decoder(stream: AudioStream | VideoStream) -> str:
    """Its name; empty if FFmpeg has none."""
    context: CodecContext | None = stream.codec_context  # PyAV's annotations say that it is always there
    return context.name if context else ""


class _Scan:
    """All packets of a file: ``spans`` (begin, end) of the shown ones by stream, and what speaks of damage."""

    def __init__(self, container: InputContainer, chosen: Sequence[AudioStream | VideoStream]) -> None:
        self.spans: dict[int, list[tuple[float, float]]] = {stream.index: [] for stream in chosen}
        self.file_end = 0.0
        self.has_zeros = False
        """Whether a packet was overwritten with zeros."""
        self.starts_anew = False
        """Whether the time of a stream jumps back, as where two files were joined."""
        self._bytes: dict[int, int] = {}  # by position; packets in one block have the same
        never_zero = {stream.index for stream in chosen if _decoder(stream) in NEVER_ZERO}
        latest: dict[int, float] = {}
        for packet in container.demux():
            index, size, position = packet.stream_index, packet.size, packet.pos
            if position is not None and position >= 0:
                self._bytes[position] = self._bytes.get(position, 0) + size
            if packet.pts is None or packet.time_base is None:
                continue
            # Exact, and ten times as fast as Fractions.
            ticks, per_second = packet.time_base.as_integer_ratio()
            begin = packet.pts * ticks / per_second
            end = begin + (packet.duration or 0) * ticks / per_second
            self.file_end = max(self.file_end, end)
            if index not in self.spans:
                continue
            if not packet.is_discard:
                self.spans[index].append((begin, end))
            if (
                packet.dts is not None and not packet.is_discard
            ):  # each piece of an edit list begins with hidden ones
                decoded = packet.dts * ticks / per_second
                self.starts_anew |= decoded < latest.get(index, decoded) - JUMP_BACK
                latest[index] = decoded
            if index in never_zero and size > SMALLEST_PACKET and not any(memoryview(packet)):
                self.has_zeros = True

    @property
    def longest_pause(self) -> float:
        """Seconds without packets of either picture or sound, if the file has both."""
        spans = [] if len(self.spans) < 2 else sorted(span for spans in self.spans.values() for span in spans)
        longest, covered = 0.0, spans[0][1] if spans else 0.0
        for begin, end in spans:
            longest, covered = max(longest, begin - covered), max(covered, end)
        return longest

    @property
    def largest_gap(self) -> int:
        """Bytes between two packets that follow each other."""
        places = sorted(self._bytes.items())
        return max((after - pos - size for (pos, size), (after, _) in pairwise(places)), default=0)


def _check_complete(container: InputContainer, scan: _Scan) -> None:
    formats = set(container.format.name.split(","))
    announced = _announced_seconds(container, formats) if formats & LENGTH_IN_HEADER else 0.0
    missing = announced - (scan.file_end - _start(container))
    tolerated = max(MISSING_SECONDS, MISSING_SHARE * announced)
    if missing > tolerated:
        raise MediaError(
            f"is truncated, the last {missing:.1f} of {announced:.1f} s are missing", fault=TRUNCATED
        )
    hole = scan.largest_gap
    if formats & WITHOUT_PADDING and hole > max(SMALLEST_HOLE, container.size // 100):
        raise MediaError(f"is damaged, {hole} bytes in its middle cannot be read")
    if scan.has_zeros:
        raise MediaError("is damaged, a part of it was overwritten with zeros")
    if scan.starts_anew and picture_of(container) is not None:
        raise MediaError("its time starts anew in the middle")
    if scan.longest_pause > tolerated:
        raise MediaError(
            f"is damaged, {scan.longest_pause:.1f} s in its middle have neither picture nor sound"
        )


def _announced_seconds(container: InputContainer, formats: set[str]) -> float:
    announced, start = (container.duration or 0) / av.time_base, _start(container)
    if formats & LENGTH_IS_LAST_MOMENT and announced > start:
        return announced - start
    if "avi" in formats:
        # FFmpeg shortens the duration to what is there; the number of frames is the header's.
        counts = (float(stream.frames * (stream.time_base or 0)) for stream in container.streams.video)
        return max([announced, *counts])
    return announced


def _start(container: InputContainer) -> float:
    return (container.start_time or 0) / av.time_base
