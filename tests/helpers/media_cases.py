"""Media files as people have them: containers x codecs x frame rates x sample rates x channels x turns x times."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from helpers.media_files import Picture, Sound, with_edits, write_media

NTSC, FILM = Fraction(30_000, 1001), Fraction(24_000, 1001)  # 29.97 and 23.98 frames per second
UNEVEN = (0.0, 0.03, 0.07, 0.2, 0.25, 0.5, 0.52, 0.55, 0.9, 1.0, 1.02, 1.3)  # s
ONE_KEY_FRAME = {"sc_threshold": "1000000000", "g": "600"}
X264 = Picture("libx264", rate=Fraction(25), options={"preset": "ultrafast", "bf": "2"})
X264_OF_ONE_GROUP = replace(X264, options={**X264.options, **ONE_KEY_FRAME})
X265_OPTIONS = "pools=none:frame-threads=1:log-level=none"
X265 = replace(X264, codec="libx265", options={"preset": "ultrafast", "x265-params": X265_OPTIONS})
VP8 = Picture("libvpx", options={"deadline": "realtime", "cpu-used": "8", "b": "500000"})
VP9 = replace(VP8, codec="libvpx-vp9")
AV1 = Picture("libsvtav1", height=64, options={"preset": "12", "svtav1-params": "lp=1"})
MPEG2 = Picture("mpeg2video", rate=Fraction(25))
H263 = Picture("h263", width=128, height=96)
HD = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
AAC = Sound(rate=44_100, layout="stereo")
MP3 = Sound("libmp3lame", rate=44_100)
MP2 = Sound("mp2", rate=48_000)
OPUS = Sound("libopus", rate=48_000)
PCM = Sound("pcm_s16le")
AMR = Sound("libopencore_amrnb", rate=8000)
VORBIS = Sound("vorbis", rate=44_100, layout="stereo", options={"strict": "-2"})
WMA = Sound("wmav2", rate=44_100, options={"b": "64000"})
TURNS = {
    "right": (0, 1, -1, 0),
    "left": (0, -1, 1, 0),
    "around": (-1, 0, 0, -1),
    "mirrored": (-1, 0, 0, 1),
    "upside_down": (1, 0, 0, -1),
    "right_mirrored": (0, 1, 1, 0),
    "left_mirrored": (0, -1, -1, 0),
}
"""Display matrices of phones and their front cameras."""
FRAGMENTED = {"movflags": "empty_moov+frag_keyframe+default_base_moof"}
"""As streams and screen recorders write MP4."""


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        name: with its ending.
        tracks: what is in it.
        form: FFmpeg's name of the container if the ending does not say it.
        edits: what an edit list shows, see ``with_edits``; all by default.
        options: of the container.
        named: what our reader says of the file instead of reading it.
        late_in_ffmpeg: seconds by which ffmpeg shows the pictures too late, though the file does not say so.
    """

    name: str
    tracks: tuple[Picture | Sound, ...]
    form: str | None = None
    edits: tuple[tuple[float, float], ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    named: str = ""
    late_in_ffmpeg: float = 0.0

    def write(self, folder: Path) -> Path:
        with same_priority():
            path = write_media(folder / self.name, *self.tracks, form=self.form, options=self.options)
        if self.edits:
            path.write_bytes(with_edits(path.read_bytes(), *self.edits))
        return path

    def has(self, kind: type[Picture | Sound]) -> bool:
        return any(isinstance(track, kind) for track in self.tracks)


@contextmanager
def same_priority() -> Iterator[None]:
    """The AV1 encoder, if root runs it, makes its process and all that this starts go before every other process."""
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _film(name: str, picture: Picture, sound: Sound, **more: object) -> Case:
    return Case(name, (picture, sound), **more)  # type: ignore[arg-type]


def _sound(name: str, sound: Sound, form: str | None = None, **options: str) -> Case:
    return Case(name, (sound,), form, options=options)


CODECS = (
    _film("h264.mp4", X264, AAC),
    _film("mpeg4.mp4", Picture(), Sound()),
    _film("hevc.mp4", X265, AAC),
    _film("av1.mp4", AV1, replace(OPUS, layout="stereo")),
    _film("alac.mp4", X264, Sound("alac", rate=48_000)),
    _film("surround.mp4", X264, Sound("ac3", rate=48_000, layout="5.1")),
    _film("fragments.mp4", X264, AAC, options=FRAGMENTED),
    _film("faststart.mp4", X264, Sound(rate=22_050), options={"movflags": "faststart"}),
    _film("no_edit_list.mp4", X264, AAC, options={"use_editlist": "0"}),
    Case("silent.mp4", (X264,)),
    _film("prores.mov", Picture("prores", form="yuv422p10le"), Sound("pcm_s24le", rate=48_000)),
    _film("mjpeg.mov", Picture("mjpeg", form="yuvj422p"), Sound("pcm_mulaw", rate=8000)),
    _film("hevc.mov", replace(X265, rate=Fraction(50)), AAC),
    _film("h264.mkv", X264, AAC),
    _film("hevc.mkv", X265, Sound("flac", rate=48_000, layout="stereo")),
    _film("vp8.mkv", VP8, VORBIS),
    _film("mpeg2.mkv", MPEG2, MP2),
    _film("vp8.webm", VP8, OPUS),
    _film("vp9.webm", VP9, replace(OPUS, layout="stereo")),
    _film("av1.webm", AV1, OPUS),
    _film("h263.flv", Picture("flv"), MP3),
    _film("h264.flv", X264, AAC),
    _film("nellymoser.flv", Picture("flv"), Sound("nellymoser", rate=22_050)),
    _film("mpeg4.avi", Picture(), MP3),
    _film("mjpeg.avi", Picture("mjpeg", form="yuvj420p"), PCM),
    _film("msmpeg4.avi", Picture("msmpeg4v3"), Sound("adpcm_ima_wav", rate=22_050)),
    # AVI has no times of display, and FFmpeg's muxer loses the two frames by which the pictures are behind the sound.
    # The recording's first frame belongs to its first sample; we show it at 0.04 s, ffmpeg at 0.08 s.
    _film("h264.avi", X264, Sound("ac3", rate=48_000, layout="stereo"), late_in_ffmpeg=0.04),
    _film("h264.ts", X264, AAC),
    _film("mpeg2.ts", MPEG2, replace(MP2, layout="stereo")),
    _film("h263.3gp", H263, AMR),
    _film("h264.3gp", X264, Sound()),
    _film("mpeg1.mpg", Picture("mpeg1video", rate=Fraction(25)), replace(MP2, rate=44_100), form="mpeg"),
    _film("wmv2.wmv", Picture("wmv2", rate=Fraction(25)), WMA, form="asf"),
)
RATES = (
    _film("ntsc.mp4", replace(X264, rate=NTSC), AAC),
    _film("ntsc.mkv", replace(X264, rate=NTSC), OPUS),
    _film("ntsc.avi", Picture(rate=NTSC), MP3),
    _film("ntsc.flv", Picture("flv", rate=NTSC), MP3),
    _film("film.ts", replace(X264, rate=FILM), AAC),
    _film("fast.mp4", replace(X264, rate=2 * NTSC), AAC),
    _film("slow.mp4", replace(X264, rate=Fraction(1), seconds=3), replace(AAC, seconds=3)),
    _film("uneven.mp4", replace(X264, times=UNEVEN), AAC),
    _film("uneven.mkv", replace(VP8, times=UNEVEN), OPUS),
    _film("uneven.webm", replace(VP9, times=UNEVEN), OPUS),
    _film("uneven.flv", Picture("flv", times=UNEVEN), MP3),
    _film("uneven.ts", replace(X264, times=UNEVEN), AAC),
    _film("uneven.3gp", replace(H263, times=UNEVEN), AMR),
)
TURNED = (
    *(_film(f"{turn}.mp4", replace(X264, matrix=matrix), Sound()) for turn, matrix in TURNS.items()),
    _film("right.mov", Picture(matrix=TURNS["right"]), PCM),
)
TIMES = (
    _film("late_sound.mp4", X264, replace(AAC, start=0.7)),
    _film("late_sound.mkv", X264, replace(AAC, start=0.7)),
    _film("late_sound.flv", Picture("flv"), replace(MP3, start=0.5)),
    _film("late_sound.ts", X264, replace(AAC, start=0.4)),
    _film("late_fragments.mp4", X264, replace(AAC, start=0.5), options=FRAGMENTED),
    # AVI cannot say so: its muxer announces 77 blocks of sound where 59 are.
    _film("late_sound.avi", Picture(), replace(MP3, start=0.5), named="is truncated, the last 0.5 of 2.0 s"),
    Case("late.m4a", (replace(AAC, start=0.5),), "ipod"),
    _film("late_picture.mp4", replace(X264, start=0.6), AAC),
    _film("late_picture.mkv", replace(X264, start=0.33), AAC),
    _film("late_picture.webm", replace(VP8, start=0.4), OPUS),
    _film("a_frame_late.mp4", replace(X264, rate=Fraction(5), start=0.2), AAC),
    _film("cut.mp4", replace(X264_OF_ONE_GROUP, start=-0.6), replace(AAC, start=-0.6)),
    _film("cut.mov", Picture(start=-0.4, options=ONE_KEY_FRAME), replace(PCM, start=-0.4)),
    _film("cut_picture.mp4", replace(X264_OF_ONE_GROUP, start=-0.6), AAC),
    _film("cut_sound.mp4", X264, replace(AAC, start=-0.5)),
    _film("ends_early.mp4", X264, AAC, edits=((0, 0.97),)),
    _film("from_the_middle.mp4", X264, AAC, edits=((0.33, 0.9),)),
    _film("two_pieces.mp4", X264, AAC, edits=((0, 0.5), (1.0, 1.4))),
    _film("swapped.mov", X264, AAC, edits=((1.0, 1.4), (0.2, 0.6))),
    _film("an_hour.mkv", replace(X264, start=3600), replace(AAC, start=3600)),
    _film("an_hour.flv", replace(X264, start=3600), replace(AAC, start=3600)),
    _film("an_hour.ts", replace(X264, start=3600), replace(AAC, start=3600.2)),
    _film("an_hour.mp4", replace(X264, start=3600), replace(AAC, start=3600), options=FRAGMENTED),
    # The 33 bits of a transport stream's clock end within the first second.
    _film("wrapped.ts", replace(X264, start=95_443), replace(AAC, start=95_443)),
    _film("gap.mkv", X264, replace(AAC, gap=(0.5, 1.0))),
    _film("gap.mp4", X264, replace(AAC, gap=(0.4, 0.9))),
    _film("gap.webm", VP8, replace(OPUS, gap=(0.5, 1.0))),
    Case("default.mkv", (X264, replace(AAC, seed=1, default=False), replace(AAC, default=True))),
)
PIXELS = (
    _film("full_range.mp4", replace(X264, form="yuvj420p"), AAC),
    _film("hd.mp4", replace(X264, options={**X264.options, **HD}), AAC),
    _film("sharp.mp4", replace(X264, form="yuv444p"), AAC),
    _film("ten_bits.mp4", replace(X265, form="yuv420p10le"), AAC),
    _film("cropped.mp4", replace(X264, width=66, height=50), AAC),
    _film("lossless.mkv", Picture("ffv1", form="bgr0"), PCM),
    _film("grey.mkv", Picture("ffv1", form="gray"), PCM),
    _film("odd.mkv", Picture("ffv1", width=67, height=49), PCM),
    _film("alpha.mov", Picture("png", form="rgba"), PCM),
)
SOUNDS = (
    _sound("stereo.wav", Sound("pcm_s16le", rate=44_100, layout="stereo")),
    _sound("eight_bits.wav", Sound("pcm_u8", rate=11_025)),
    _sound("float.wav", Sound("pcm_f32le", rate=48_000)),
    _sound("surround.wav", Sound("pcm_s24le", rate=48_000, layout="5.1")),
    _sound("law.wav", Sound("pcm_alaw", rate=8000)),
    _sound("adpcm.wav", Sound("adpcm_ms", rate=22_050)),
    _sound("stereo.flac", Sound("flac", rate=44_100, layout="stereo")),
    _sound("high.flac", Sound("flac", rate=96_000)),
    _sound("stereo.mp3", replace(MP3, layout="stereo")),
    _sound("low.mp3", Sound("libmp3lame", rate=16_000)),
    _sound("bare.mp3", MP3, write_xing="0"),
    _sound("vorbis.ogg", VORBIS),
    _sound("opus.ogg", OPUS),
    _sound("flac.ogg", Sound("flac", rate=44_100)),
    _sound("voice.opus", replace(OPUS, options={"application": "voip", "b": "24000"})),
    _sound("surround.opus", replace(OPUS, layout="5.1")),
    _sound("aac.m4a", AAC, "ipod"),
    _sound("alac.m4a", Sound("alac", rate=44_100, layout="stereo"), "ipod"),
    _sound("sixteen_channels.mka", replace(PCM, layout="hexadecagonal"), "matroska"),
    _sound("sixteen_channels.wav", replace(PCM, layout="hexadecagonal")),
    _sound("sixteen_channels.wv", Sound("wavpack", layout="hexadecagonal")),
    _sound("adts.aac", AAC, "adts"),
    _sound("opus.webm", OPUS),
    _sound("voice.3gp", AMR),
    _sound("voice.amr", AMR, "amr"),
    _sound("wma.wma", WMA, "asf"),
    _sound("aiff.aiff", Sound("pcm_s16be", rate=44_100)),
)
CASES = CODECS + RATES + TURNED + TIMES + PIXELS + SOUNDS
