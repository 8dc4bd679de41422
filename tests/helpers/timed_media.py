"""Videos that tell the time: second n of the recording is a plain grey and a tone of its own.

So a test reads off which moment of the recording a frame or a stretch of sound comes from, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from helpers.media_files import with_matrix

FRAME_RATE = 10  # Hz
SOUND_RATE = 16_000  # Hz
BLOCK = 1024  # samples per frame of AAC


def grey(second: int) -> int:
    return 20 + 20 * second


def hertz(second: int) -> int:
    return 200 + 100 * second


def seconds_seen(frames: np.ndarray) -> list[int]:
    """uint8 (count, height, width, 3) -> which second of the recording each frame comes from."""
    return [round((float(frame.mean()) - grey(0)) / (grey(1) - grey(0))) for frame in frames]


def seconds_heard(waveform: np.ndarray, rate: int) -> list[int | None]:
    """For the middle half of each second: which second of the recording it sounds like, None for silence."""
    heard: list[int | None] = []
    for start in range(0, round(len(waveform) / rate)):
        part = waveform[round((start + 0.25) * rate) : round((start + 0.75) * rate)]
        loudest = np.abs(np.fft.rfft(part)).argmax() * rate / len(part)
        heard.append(
            None if np.abs(part).max() < 0.01 else round((loudest - hertz(0)) / (hertz(1) - hertz(0)))
        )
    return heard


def tell_time(seconds: float) -> np.ndarray:
    """float32 (samples,): the tones of the recording."""
    moments = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    return (
        0.3 * np.sin(2 * np.pi * hertz(0) * moments + 2 * np.pi * 100 * np.floor(moments) * moments)
    ).astype(np.float32)


def write_timed_video(
    path: Path,
    seconds: int = 10,
    *,
    picture_at: float | None = 0.0,
    sounds_at: Sequence[float] = (0.0,),
    default_sound: int | None = None,
    keep_sound: Callable[[float], bool] = lambda moment: True,
    keep_picture: Callable[[float], bool] = lambda moment: True,
    codec: str = "mpeg4",
    fragmented: bool = False,
) -> Path:
    """64 x 48 pixels of MPEG-4 (H.263 in FLV) with one key frame by default, and AAC.

    Args:
        path: its ending is the container.
        seconds: of the recording.
        picture_at: the time stamp of the recording's first frame; negative ones are hidden by an edit list in MP4.
            None: no picture.
        sounds_at: the same, for each audio track. Tracks but the last are one second ahead each.
        default_sound: the track that is marked so; by default, the container's own choice.
        codec: of the picture.
        fragmented: an MP4 as it is streamed.
        keep_sound, keep_picture: whether what begins at this second of the recording is in the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    packets: list[av.Packet[Any]] = []
    options = {"avoid_negative_ts": "disabled"} if min(picture_at or 0.0, *sounds_at) < 0 else {}
    if fragmented:
        options["movflags"] = "empty_moov+frag_every_frame"
    with av.open(str(path), "w", options=options) as container:
        if picture_at is not None:
            coder = "flv" if (path.suffix, codec) == (".flv", "mpeg4") else codec
            video = cast("av.VideoStream", container.add_stream(coder, rate=FRAME_RATE))
            video.width, video.height, video.pix_fmt, video.gop_size = 64, 48, "yuv420p", 600
            video.options = {"sc_threshold": "1000000000"}  # no further key frames
            packets += _moved(_pictures(video, seconds), picture_at, keep_picture)
        for number, start in enumerate(sounds_at):
            audio = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
            if default_sound is not None:
                audio.disposition = (
                    av.stream.Disposition.default if number == default_sound else av.stream.Disposition(0)
                )
            ahead = len(sounds_at) - 1 - number
            packets += _moved(
                _sound(audio, tell_time(seconds + ahead)[ahead * SOUND_RATE :]), start, keep_sound
            )
        container.start_encoding()
        for packet in sorted(packets, key=_decoded):
            container.mux(packet)
    return path


def _pictures(stream: av.VideoStream, seconds: int) -> list[av.Packet[Any]]:
    packets = []
    for number in range(seconds * FRAME_RATE):
        shade = np.full((48, 64, 3), grey(number // FRAME_RATE), np.uint8)
        frame = av.VideoFrame.from_ndarray(shade, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, FRAME_RATE)
        packets += stream.encode(frame)
    return packets + stream.encode()


def _sound(stream: av.AudioStream, waveform: np.ndarray) -> list[av.Packet[Any]]:
    """Of float32 (samples,), or (channels, samples) as the stream has them."""
    frame = av.AudioFrame.from_ndarray(np.atleast_2d(waveform), "fltp", stream.layout.name)
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
    fifo = av.AudioFifo()
    fifo.write(frame)
    packets = [packet for block in fifo.read_many(BLOCK, partial=True) for packet in stream.encode(block)]
    return packets + stream.encode()


def _decoded(packet: av.Packet[Any]) -> Fraction:
    return (packet.dts or 0) * packet.time_base


def _moved(
    packets: list[av.Packet[Any]], start: float, keep: Callable[[float], bool]
) -> list[av.Packet[Any]]:
    kept = [packet for packet in packets if keep(float((packet.pts or 0) * packet.time_base))]
    for packet in kept:
        shift = round(start / packet.time_base)
        packet.pts, packet.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
    return kept


def write_corners(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """An MP4 of 64 x 48 pixels whose corners are red, green / blue, white, with (a b c d) as its display matrix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32], picture[:24, 32:] = (255, 0, 0), (0, 255, 0)
    picture[24:, :32], picture[24:, 32:] = (0, 0, 255), (255, 255, 255)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FRAME_RATE)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    path.write_bytes(with_matrix(path.read_bytes(), matrix))
    return path


def corners(picture: np.ndarray) -> str:
    """uint8 (height, width, 3) -> such as "RG/BW"."""
    names = {
        (True, False, False): "R",
        (False, True, False): "G",
        (False, False, True): "B",
        (True,) * 3: "W",
    }
    a, b, c, d = (names.get(tuple((picture[y, x] > 128).tolist()), "?") for y in (5, -6) for x in (5, -6))
    return f"{a}{b}/{c}{d}"


def write_growing_video(path: Path) -> Path:
    """A WebM of a call: 10 frames of 64 x 48 pixels (second 0), then 10 of 96 x 64 (second 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libvpx", rate=FRAME_RATE)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for second, (width, height) in enumerate(((64, 48), (96, 64))):
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base = Fraction(1, FRAME_RATE)
            packets = []
            for number in range(FRAME_RATE):
                shade = np.full((height, width, 3), grey(second), np.uint8)
                frame = av.VideoFrame.from_ndarray(shade, format="rgb24")
                frame.pts, frame.time_base = second * FRAME_RATE + number, encoder.time_base
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode():
                packet.stream = video
                container.mux(packet)
    return path


def write_widening_sound(path: Path) -> Path:
    """An ADTS stream of a broadcaster: one second in mono, then one in stereo, the right channel silent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b""
    for layout in ("mono", "stereo"):
        part = path.with_name("part.aac")
        with av.open(str(part), "w", format="adts") as container:
            audio = container.add_stream("aac", rate=SOUND_RATE, layout=layout)
            left = tell_time(1)
            waveform = left if layout == "mono" else np.stack([left, np.zeros_like(left)])
            container.mux(_sound(audio, waveform))
        content += part.read_bytes()
        part.unlink()
    path.write_bytes(content)
    return path


def write_hdr_video(path: Path, signals: Sequence[float], transfer: int) -> Path:
    """BT.2020 at ten bits: one frame of grey columns, 16 pixels wide, of these signal values (0 to 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = av.VideoFrame(16 * len(signals), 16, "yuv420p10le")
    for number, plane in enumerate(frame.planes):
        row = (
            np.full(plane.width, 512)
            if number
            else np.repeat([round(64 + 876 * level) for level in signals], 16)
        )
        padded = np.zeros((plane.height, plane.line_size // 2), "<u2")
        padded[:, : plane.width] = row
        plane.update(padded.tobytes())
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=FRAME_RATE)
        video.width, video.height, video.pix_fmt = frame.width, frame.height, "yuv420p10le"
        context = video.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = (
            transfer,
            9,
            9,
            1,
        )
        container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


def write_song_with_cover(path: Path) -> Path:
    """An M4A with sound and a picture of its cover."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        cover = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame(64, 48, "yuvj420p")
        picture.pts = 0
        sound = _sound(audio, tell_time(2))
        container.mux([*cover.encode(picture), *cover.encode(), *sound])
    return path
