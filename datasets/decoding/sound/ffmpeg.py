"""Decode a sound file with FFmpeg so that nothing is left out silently."""

from __future__ import annotations

import av

from fedstill.datasets.decoding.media.channels import PACKED, Channels, joined, samples_of
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.media.file import opened, sound_of
from fedstill.datasets.files.faults import NO_SOUND

LARGEST_JUMP = 0.1  # s between the end of a frame and the next one's time stamp


def decode_with_ffmpeg(content: bytes, *, is_strict: bool = True) -> tuple[Channels, int]:
    """float32 (channels, samples) and the rate in Hz of the sound that a player plays.

    Args:
        content: the file's bytes.
        is_strict: a block that does not match its checksum is an error; FFmpeg would put silence or noise there.

    Raises:
        MediaError: no sound, a hole in the middle, another rate from there on. FFmpeg's own errors pass through.
    """
    pieces: list[Channels] = []
    resamplers: dict[tuple[str, str], av.AudioResampler] = {}
    rate, expected = 0, None
    with opened(content) as container:
        stream = sound_of(container)
        if stream is None or stream.codec_context is None:
            raise MediaError("holds no sound of a known codec", fault=NO_SOUND)
        if is_strict:
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        for frame in container.decode(stream):
            if rate and frame.sample_rate != rate:
                raise MediaError("changes its sample rate half-way", remedy="convert it to one rate first")
            rate = frame.sample_rate
            if expected is not None and frame.time is not None and frame.time - expected > LARGEST_JUMP:
                raise MediaError(
                    f"is damaged: nothing can be decoded from {expected:.1f} to {frame.time:.1f} s"
                )
            expected = None if frame.time is None else frame.time + frame.samples / rate
            form = (frame.format.name, frame.layout.name)
            if form not in resamplers:
                resamplers[form] = av.AudioResampler(format=PACKED, rate=rate)
            pieces += [samples_of(piece) for piece in resamplers[form].resample(frame)]
    return joined(pieces), rate
