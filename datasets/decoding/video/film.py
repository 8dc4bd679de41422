"""A film's sound and pictures, decoded with FFmpeg. Its package, PyAV, is not in every install.

So this file is imported only when a film is at hand; ``decoder_errors`` then says what to install.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat

import av

from fedstill.datasets.decoding.media.channels import Channels
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.media.file import Source, opened, picture_of, sound_of
from fedstill.datasets.decoding.video.clock import Timeline, read_timeline
from fedstill.datasets.decoding.video.display_matrix import Frames, upright_pictures
from fedstill.datasets.decoding.video.timed_sound import place_sound
from fedstill.datasets.files.faults import NO_PICTURE

MOST_PIXELS = 70_000_000
"""Of one frame: 8192 x 8192. A decoder keeps several."""


def film_frames(source: Source, count: int, start: float, end: float | None, *, hold: bool) -> Frames:
    """As ``decode.read_video_frames``; raises MediaError, and FFmpeg's errors as they are."""
    timeline = read_timeline(source, "video")
    # A picture that is less than half a frame late belongs to the start: so much the delay of a sound's codec
    # makes, and half a frame is what the eye cannot tell.
    zero = timeline.begin if timeline.begin - timeline.zero < timeline.shortest / 2 else timeline.zero
    stop = timeline.end if end is None else zero + end if hold else min(zero + end, timeline.end)
    begin = zero + start
    if begin > stop:
        raise MediaError(
            f"lasts {timeline.end - zero:.1f} s, but {start} s to {end} s is asked for",
            remedy="correct the row",
        )
    middles = [begin + (stop - begin) * (2 * part + 1) / (2 * count) for part in range(count)]
    with opened(source) as container:
        stream = picture_of(container)
        assert stream is not None  # it has a timeline
        if stream.width * stream.height > MOST_PIXELS:
            raise MediaError(
                f"has too many pixels ({stream.width} x {stream.height})", remedy="make it smaller"
            )
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # it may grow in mid-stream
        pictures = upright_pictures(_on_display(container.decode(stream), middles, timeline), count)
        if not len(pictures):
            raise MediaError("holds no decodable video frame", fault=NO_PICTURE)
        return pictures


def film_sound(source: Source) -> tuple[Channels, int]:
    """Float32 (channels, samples) and the rate in Hz; raises as ``film_frames``."""
    timeline = read_timeline(source, "audio")
    with opened(source) as container:
        stream = sound_of(container)
        assert stream is not None  # it has a timeline
        channels = place_sound(container.decode(stream), stream.rate, timeline.zero, timeline.edited_end)
        return channels, stream.rate


def _on_display(
    frames: Iterable[av.VideoFrame], moments: Sequence[float], timeline: Timeline
) -> Iterator[tuple[av.VideoFrame, int]]:
    """The frames that are on display at the ascending ``moments`` (s), and at how many: the last one begun by then."""
    shown: av.VideoFrame | None = None
    done = 0
    time = timeline.begin - timeline.interval
    for frame, packet_time in zip(frames, chain(timeline.times, repeat(None)), strict=False):
        stamp = frame.time if packet_time is None else packet_time
        time = time + timeline.interval if stamp is None else stamp
        passed = bisect_left(moments, time - 1e-6, lo=done)
        if shown is not None and passed > done:
            yield shown, passed - done
            done = passed
        shown = frame
        if done == len(moments):
            return
    if shown is not None:
        yield shown, len(moments) - done
