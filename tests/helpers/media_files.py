"""Media files of any container, codec, rate, layout, turn and time, whose pictures are numbered and sound unique.

So two decoders can be compared: which picture a frame is, and how far apart two sounds are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.stream import Disposition

COLOURS = ((220, 40, 40), (40, 200, 40), (40, 40, 220))
"""Top left, top right, bottom left: turned and mirrored pictures differ."""
TICK = Fraction(1, 90_000)  # s; what pictures of uneven times are counted in
Matrix = tuple[int, int, int, int]
UPRIGHT: Matrix = (1, 0, 0, 1)


@dataclass(frozen=True)
class Picture:
    """A video track.

    Attributes:
        codec: FFmpeg's name of the encoder.
        rate: frames per second.
        seconds: for how long, if ``times`` does not say.
        times: of each frame (s), for uneven ones.
        start: the time stamp of the first frame; what is negative is hidden by an edit list.
        matrix: (a b c d) of the display matrix.
        width, height: in pixels.
        form: FFmpeg's pixel format.
        default: whether the track is marked so; None leaves it to the container.
        options: of the encoder.
    """

    codec: str = "mpeg4"
    rate: Fraction = Fraction(10)
    seconds: float = 1.5
    times: Sequence[float] = ()
    start: float = 0.0
    matrix: Matrix = UPRIGHT
    width: int = 64
    height: int = 48
    form: str = "yuv420p"
    default: bool | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def moments(self) -> list[float]:
        """When each frame begins, from the first one."""
        return list(self.times) or [
            float(number / self.rate) for number in range(round(self.seconds * self.rate))
        ]


@dataclass(frozen=True)
class Sound:
    """An audio track; see ``Picture``. ``gap``: from when to when (s) the file holds none. ``seed``: of its noise."""

    codec: str = "aac"
    rate: int = 16_000
    layout: str = "mono"
    seconds: float = 1.5
    start: float = 0.0
    gap: tuple[float, float] = (0.0, 0.0)
    seed: int = 0
    default: bool | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def write_media(
    path: Path, *tracks: Picture | Sound, form: str | None = None, options: Mapping[str, str] | None = None
) -> Path:
    """Write ``tracks`` into one file. ``form``: FFmpeg's name of the container, by default what the ending says."""
    starts = [track.start for track in tracks]
    wanted = {**({"avoid_negative_ts": "disabled"} if min(starts) < 0 else {}), **(options or {})}
    packets: list[av.Packet[Any]] = []
    with av.open(str(path), "w", format=form, options=wanted) as container:
        for track in tracks:
            made = _pictures(container, track) if isinstance(track, Picture) else _sounds(container, track)
            for packet in made:
                shift = round(track.start / packet.time_base)
                packet.pts, packet.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
            packets += made
        container.start_encoding()
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            container.mux(packet)
    for track in tracks:
        if isinstance(track, Picture) and track.matrix != UPRIGHT:
            path.write_bytes(with_matrix(path.read_bytes(), track.matrix))
    return path


def numbered(number: int, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): three coloured corners, and the number in the black and white of nine fields."""
    fields = np.zeros((12, 3), np.uint8)
    fields[[0, 3, 8]] = COLOURS
    for bit, place in enumerate((1, 2, 4, 5, 6, 7, 9, 10, 11)):
        fields[place] = 220 if number >> bit & 1 else 30
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    picture: np.ndarray = fields[rows[:, None] * 4 + columns]
    return picture


def unique_sound(seconds: float, rate: int, channels: int, seed: int = 0) -> np.ndarray:
    """float32 (channels, samples): noise below 2 kHz, two thirds of it common to all channels."""
    rng = np.random.default_rng([seed, rate])
    count = round(seconds * rate)
    frequencies = np.fft.rfftfreq(count, 1 / rate)
    shape = (frequencies > 100) & (frequencies < 2000)
    waves = np.fft.irfft(np.fft.rfft(rng.standard_normal((channels + 1, count))) * shape, count)
    mixed = waves[:1] + 0.5 * waves[1:]
    sound: np.ndarray = (0.5 * mixed / np.abs(mixed).max()).astype(np.float32)
    return sound


def _pictures(container: av.container.OutputContainer, track: Picture) -> list[av.Packet[Any]]:
    stream = cast("av.VideoStream", container.add_stream(track.codec, rate=track.rate))
    stream.width, stream.height, stream.pix_fmt = track.width, track.height, track.form
    stream.options = {"threads": "1", **track.options}
    _mark(stream, track.default)
    tick = TICK if track.times else 1 / track.rate
    if track.times:
        stream.codec_context.time_base = tick
    packets = []
    for number, moment in enumerate(track.moments):
        shown = numbered(number, track.height, track.width)
        frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
        frame.pts, frame.time_base = round(moment / tick), tick
        packets += stream.encode(frame)
    return packets + stream.encode()


def _sounds(container: av.container.OutputContainer, track: Sound) -> list[av.Packet[Any]]:
    stream = cast("av.AudioStream", container.add_stream(track.codec, rate=track.rate, layout=track.layout))
    stream.options = dict(track.options)
    _mark(stream, track.default)
    context = stream.codec_context
    context.open()
    layout = av.AudioLayout(track.layout)
    samples = unique_sound(track.seconds, track.rate, layout.nb_channels, track.seed)
    packed = np.ascontiguousarray(samples.T).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, "flt", track.layout)
    frame.sample_rate, frame.pts, frame.time_base = track.rate, 0, Fraction(1, track.rate)
    converter = av.AudioResampler(context.format, track.layout, track.rate, context.frame_size or 1024)
    packets = [
        packet
        for piece in (*converter.resample(frame), *converter.resample(None))
        for packet in stream.encode(piece)
    ] + stream.encode()
    begin, end = track.gap
    return [packet for packet in packets if not begin <= float((packet.pts or 0) * packet.time_base) < end]


def _mark(stream: av.VideoStream | av.AudioStream, default: bool | None) -> None:
    if default is not None:
        stream.disposition = Disposition.default if default else Disposition(0)


def with_matrix(content: bytes, matrix: Matrix) -> bytes:
    """An MP4 or QuickTime file whose first track has (a b c d) for its display matrix."""
    plain, wanted = (
        b"".join(
            (number << 16).to_bytes(4, "big", signed=True) for number in (a, b, 0, c, d, 0, 0, 0, 1 << 14)
        )
        for a, b, c, d in (UPRIGHT, matrix)
    )
    track = content.index(plain, content.index(b"tkhd"))
    return content[:track] + wanted + content[track + len(plain) :]


def with_edits(content: bytes, *edits: tuple[float, float]) -> bytes:
    """An MP4 that shows only these stretches (from, to, in s of each track), as editors cut without encoding again.

    Each track must have an edit list, as FFmpeg writes one for AAC and for pictures that are not shown in order.
    """
    scale = int.from_bytes(_payload(content, b"mvhd")[12:16], "big")
    for track in range(content.count(b"elst")):
        box = _places(content, b"elst")[track]
        media = _payload(content, b"mdhd", track)
        media_scale = int.from_bytes(media[12:16], "big")
        first = int.from_bytes(
            content[box + 16 : box + 20], "big"
        )  # what the encoder put before the beginning
        body = bytes(4) + len(edits).to_bytes(4, "big")
        for begin, end in edits:
            body += round((end - begin) * scale).to_bytes(4, "big")
            body += (first + round(begin * media_scale)).to_bytes(4, "big") + b"\0\1\0\0"
        old = int.from_bytes(content[box - 4 : box], "big")
        new = (len(body) + 8).to_bytes(4, "big") + b"elst" + body
        parents = [
            _places(content, b"moov")[0],
            _places(content, b"trak")[track],
            _places(content, b"edts")[track],
        ]
        content = content[: box - 4] + new + content[box - 4 + old :]
        for parent in parents:
            size = int.from_bytes(content[parent - 4 : parent], "big") + len(new) - old
            content = content[: parent - 4] + size.to_bytes(4, "big") + content[parent:]
    return content


def _places(content: bytes, name: bytes) -> list[int]:
    """Where the boxes of this name have it; the movie's header must come after its data."""
    start, places = content.index(b"moov"), []
    while (start := content.find(name, start)) >= 0:
        places.append(start)
        start += 4
    return places


def _payload(content: bytes, name: bytes, number: int = 0) -> bytes:
    return content[_places(content, name)[number] + 4 :]
