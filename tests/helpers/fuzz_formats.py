"""One small file of every format that we read, and how it is read: what the fuzz test injures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pillow_heif
from PIL import Image

from fedstill.datasets.audiovisual.manifest import COLUMNS, ManifestSource
from fedstill.datasets.decoding.decode import read_audio, read_video_frames
from fedstill.datasets.decoding.image_files import Frames, read_frames
from fedstill.datasets.images.image_tasks import open_image_task
from fedstill.datasets.loads.trace_files import read_trace
from helpers.media_cases import CASES
from helpers.sound_files import encoded, encoded_by_ffmpeg, mp3, noise, with_flac_length

FRAMES = 4
LONGEST = 100 * 48_000  # samples; the files hold one or two seconds


@dataclass(frozen=True)
class Format:
    """``make``: a good file. ``read``: as users do, from bytes or a file written at the path; it checks the result."""

    room: str
    make: Callable[[], bytes]
    read: Callable[[Path, bytes], None]

    @property
    def content(self) -> bytes:
        return _made(self.make)


@cache
def _made(make: Callable[[], bytes]) -> bytes:
    return make()


def _check_sound(path: Path, content: bytes) -> None:
    waveform, rate = read_audio(path, content)
    assert waveform.dtype == np.float32
    assert 0 < len(waveform) < LONGEST
    assert np.isfinite(waveform).all()
    assert rate > 0


def _check_frames(frames: Frames) -> None:
    assert frames.dtype == np.uint8
    assert len(frames) == FRAMES
    assert frames.shape[3:] == (3,)
    assert frames.size > 0


def _check_film(path: Path, content: bytes) -> None:
    _check_frames(read_video_frames(path, FRAMES, data=content))
    _check_sound(path, content)


def _check_picture(path: Path, content: bytes) -> None:
    _check_frames(read_frames(path, FRAMES, content))


def _check_trace(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    times = read_trace(path)
    assert len(times) > 0
    assert np.isfinite(times).all()


def _check_task(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    task = open_image_task("fuzz", path)
    for split in ("train", "test"):
        images = task.load(split)
        assert len(images) > 0


def _check_table(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for name, file in _clip_files().items():
        path.with_name(name).write_bytes(file)
    source = ManifestSource(path, frame_count=FRAMES)
    assert len(source.index) > 0


def _check_clip(path: Path, content: bytes) -> None:
    """A good manifest and an injured file beside it: an array or a zip."""
    path.write_bytes(content)
    for name, file in _clip_files().items():
        if name != path.name:
            path.with_name(name).write_bytes(file)
    inside = "clips/a" if path.suffix == ".zip" else "a"
    sound = path.name if path.name == "sound.npy" else f"{inside}.wav"
    frames = path.name if path.name == "frames.npy" else f"{inside}.png"
    table = path.with_name("clips.csv")
    table.write_text(f"{','.join(COLUMNS)}\na,public,s1,happy,{sound},{frames}\n")
    clip = ManifestSource(table, frame_count=FRAMES).load(0)
    assert np.isfinite(clip.audio).all()
    _check_frames(clip.frames)


@cache
def _clip_files() -> Mapping[str, bytes]:
    return {"a.wav": encoded(SOUND, "WAV"), "a.png": _picture("PNG")}


def _film(name: str) -> Format:
    def make() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return next(case for case in CASES if case.name == name).write(Path(folder)).read_bytes()

    return Format("film", make, _check_film)


def _photo(size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(3)
    small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size)


def _picture(form: str, mode: str = "RGB", **options: object) -> bytes:
    file = BytesIO()
    _photo().convert(mode).save(file, format=form, **options)
    return file.getvalue()


def _moving(form: str, **options: object) -> bytes:
    file = BytesIO()
    turned = [_photo().rotate(30 * number) for number in range(FRAMES)]
    turned[0].save(file, format=form, save_all=True, append_images=turned[1:], **options)
    return file.getvalue()


def _sixteen_bits() -> bytes:
    file = BytesIO()
    Image.fromarray((np.arange(40 * 30, dtype=np.uint16) * 50).reshape(30, 40)).save(file, format="PNG")
    return file.getvalue()


def _heic() -> bytes:
    file = BytesIO()
    pillow_heif.from_pillow(_photo((64, 64))).save(file)
    return file.getvalue()


def _image(make: Callable[[], bytes]) -> Format:
    return Format("picture", make, _check_picture)


def _zip(files: Mapping[str, bytes], compression: int) -> bytes:
    file = BytesIO()
    with ZipFile(file, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def _task(compression: int) -> bytes:
    classes = ("cat", "dog")
    files = {f"train/{name}/{number}.png": _picture("PNG") for name in classes for number in range(3)}
    return _zip(files | {f"test/{name}/0.jpg": _picture("JPEG") for name in classes}, compression)


def _clips_zip() -> bytes:
    return _zip({f"clips/{name}": content for name, content in _clip_files().items()}, ZIP_DEFLATED)


def _array(values: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, values)
    return file.getvalue()


def _manifest(separator: str = ",", encoding: str = "utf-8") -> bytes:
    rows = [list(COLUMNS)]
    for number in range(12):
        split, label = ("public", "happy") if number % 2 else ("private", "sad")
        rows.append([f"clip {number}", split, f"speaker {number % 4}", label, "a.wav", "a.png"])
    return "\n".join(separator.join(row) for row in rows).encode(encoding)


def _trace(*columns: str) -> bytes:
    rows = [",".join(f"{1.5 * number + place:.3f}" for place in range(len(columns))) for number in range(40)]
    return "\n".join([",".join(columns), *rows]).encode()


SOUND = noise(1.0)
FORMATS: dict[str, Format] = {
    name: Format("sound", make, _check_sound)
    for name, make in {
        "pcm.wav": lambda: encoded(SOUND, "WAV"),
        "float.wav": lambda: encoded(SOUND, "WAV", "FLOAT"),
        "adpcm.wav": lambda: encoded(SOUND, "WAV", "IMA_ADPCM"),
        "gsm.wav": lambda: encoded(SOUND, "WAV", "GSM610", 8000),
        "rf64.wav": lambda: encoded(SOUND, "RF64"),
        "plain.flac": lambda: encoded(SOUND, "FLAC"),
        "piped.flac": lambda: with_flac_length(encoded(SOUND, "FLAC"), 0),
        "vorbis.ogg": lambda: encoded(SOUND, "OGG"),
        "opus.ogg": lambda: encoded(SOUND, "OGG", "OPUS"),
        "chained.ogg": lambda: 2 * encoded(SOUND, "OGG"),
        "xing.mp3": lambda: mp3(SOUND, xing=True),
        "plain.mp3": lambda: mp3(SOUND, xing=False),
        "joined.mp3": lambda: 2 * mp3(SOUND, xing=True),
        "sound.m4a": lambda: encoded_by_ffmpeg(SOUND, "aac", "ipod"),
        "voice.amr": lambda: encoded_by_ffmpeg(SOUND, "libopencore_amrnb", "amr", 8000),
        "adts.aac": lambda: encoded_by_ffmpeg(SOUND, "aac", "adts"),
    }.items()
}
FORMATS |= {
    name: _film(name)
    for name in (
        *(
            "h264.mp4",
            "mpeg4.mp4",
            "hevc.mp4",
            "av1.mp4",
            "fragments.mp4",
            "two_pieces.mp4",
            "left_mirrored.mp4",
        ),
        *("mjpeg.mov", "prores.mov", "h264.mkv", "gap.mkv", "vp8.webm", "vp9.webm", "h263.flv", "h264.flv"),
        *("mpeg4.avi", "mjpeg.avi", "h264.ts", "mpeg2.ts", "h263.3gp", "mpeg1.mpg", "wmv2.wmv"),
    )
}
FORMATS |= {
    name: _image(make)
    for name, make in {
        "plain.png": lambda: _picture("PNG"),
        "palette.png": lambda: _picture("PNG", "P"),
        "sixteen_bits.png": _sixteen_bits,
        "moving.png": lambda: _moving("PNG", duration=100),
        "plain.jpg": lambda: _picture("JPEG"),
        "progressive.jpg": lambda: _picture("JPEG", progressive=True),
        "cmyk.jpg": lambda: _picture("JPEG", "CMYK"),
        "turned.jpg": lambda: _picture("JPEG", exif=_turned()),
        "plain.webp": lambda: _picture("WEBP"),
        "moving.webp": lambda: _moving("WEBP", duration=100),
        "moving.gif": lambda: _moving("GIF", duration=100),
        "plain.avif": lambda: _picture("AVIF"),
        "photo.heic": _heic,
        "plain.tif": lambda: _picture("TIFF"),
        "deflated.tif": lambda: _picture("TIFF", compression="tiff_adobe_deflate"),
        "pages.tif": lambda: _moving("TIFF"),
        "plain.bmp": lambda: _picture("BMP"),
        "plain.jp2": lambda: _picture("JPEG2000"),
        "plain.ppm": lambda: _picture("PPM"),
        "plain.tga": lambda: _picture("TGA", compression="tga_rle"),
        "plain.qoi": lambda: _picture("QOI"),
        "plain.ico": lambda: _picture("ICO", "RGBA"),
        "plain.pcx": lambda: _picture("PCX"),
        "plain.dds": lambda: _picture("DDS"),
    }.items()
}
FORMATS |= {
    "manifest.csv": Format("table", _manifest, _check_table),
    "manifest_utf16.csv": Format("table", lambda: _manifest(";", "utf-16"), _check_table),
    "trace.csv": Format("table", lambda: _trace("arrival_s"), _check_trace),
    "azure.csv": Format("table", lambda: _trace("duration", "end_timestamp"), _check_trace),
    "sound.npy": Format("array", lambda: _array(np.ones((8, 20), np.float32)), _check_clip),
    "frames.npy": Format("array", lambda: _array(np.ones((FRAMES, 6, 8, 3), np.uint8)), _check_clip),
    "clips.zip": Format("zip", _clips_zip, _check_clip),
    "task.zip": Format("zip", lambda: _task(ZIP_STORED), _check_task),
    "deflated_task.zip": Format("zip", lambda: _task(ZIP_DEFLATED), _check_task),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
