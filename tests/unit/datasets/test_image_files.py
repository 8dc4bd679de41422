"""Pictures as cameras, phones and editors write them are read as a viewer shows them, or named in one line."""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fedstill.common.errors import DataError
from fedstill.datasets.decoding.image_files import read_frames, read_image, read_images
from fedstill.datasets.files.picture_formats import (
    FORMATS,
    IMAGE_SUFFIXES,
    in_natural_order,
    is_heic,
    looks_like_picture,
)

RED = (200, 40, 40)
SHADES = (0, 60, 120, 180, 240)


def packed(image: Image.Image, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, **options)  # type: ignore[arg-type]
    return file.getvalue()


def moving(form: str, durations: list[int], **options: object) -> bytes:
    """32 x 32 pictures of SHADES, each shown for so many milliseconds."""
    first, *rest = (Image.new("RGB", (32, 32), (shade,) * 3) for shade in SHADES)
    return packed(
        first, format=form, save_all=True, append_images=rest, duration=durations, lossless=True, **options
    )


def test_every_ending_of_pillow_is_a_picture_but_those_that_it_cannot_decode_itself() -> None:
    Image.init()
    known = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    outside = {".eps", ".ps", ".mpg", ".mpeg", ".wmf", ".emf", ".h5", ".hdf", ".grib", ".bufr"}
    assert known - outside <= IMAGE_SUFFIXES
    assert not IMAGE_SUFFIXES & outside
    assert set(FORMATS) <= set(Image.OPEN)


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("TIFF", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
        *(("AVIF", mode) for mode in ("RGB", "RGBA")),
        *(("BMP", "RGB"), ("GIF", "P"), ("PPM", "RGB"), ("PPM", "I"), ("TGA", "RGB"), ("JPEG2000", "RGB")),
        *(("PCX", "RGB"), ("SGI", "RGB"), ("QOI", "RGB"), ("ICO", "RGBA"), ("DDS", "RGB")),
    ],
)
def test_white_is_white_in_every_format_and_mode(form: str, mode: str) -> None:
    most = {"I;16": 65535, "I": 65535, "F": 1.0, "1": 1}.get(mode)
    if most is None:
        image = Image.new("RGB", (16, 16), "white").convert(mode)
    elif mode == "1":
        image = Image.new("1", (16, 16), most)
    else:
        image = Image.fromarray(np.full((16, 16), most, {"I;16": "<u2", "I": "<i4", "F": "<f4"}[mode]))
    pixels = read_image(Path("any.name"), packed(image, format=form))
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert pixels.min() >= 250


def test_sixteen_bits_are_rounded_to_eight() -> None:
    values = np.array([[0, 257, 128 * 257 + 100, 65535]], np.uint16)
    assert read_image(Path("x"), packed(Image.fromarray(values), format="PNG"))[0, :, 0].tolist() == [
        0,
        1,
        128,
        255,
    ]


def test_transparency_lies_on_white() -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (*RED, 255))
    for form in ("PNG", "WEBP", "TIFF"):
        data = packed(half, format=form, lossless=True)
        assert read_image(Path("x"), data).tolist() == [[[255] * 3, list(RED)]]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 3_000_000)),
    ],
    ids=["text", "unicode text", "profile"],
)
def test_long_texts_and_profiles_do_not_hide_the_picture(extra: bytes) -> None:
    plain = packed(Image.new("RGB", (4, 4), RED), format="PNG")
    assert read_image(Path("x"), plain[:33] + extra + plain[33:])[0, 0].tolist() == list(RED)


def test_texts_beyond_all_measure_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PngImagePlugin.MAX_TEXT_CHUNK == PngImagePlugin.MAX_TEXT_MEMORY <= 2**26
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1000)
    bomb = chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * 1001))
    plain = packed(Image.new("RGB", (4, 4), RED), format="PNG")
    with pytest.raises(DataError, match=r"bomb\.png: cannot decode this image"):
        read_image(Path("bomb.png"), plain[:33] + bomb + plain[33:])


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
def test_a_moving_picture_is_a_sequence_in_time(form: str) -> None:
    even, slow = moving(form, [100] * 5), moving(form, [600, 100, 100, 100, 100])

    def shades(data: bytes, count: int) -> list[int]:
        return read_frames(Path("x"), count, data)[:, 0, 0, 0].tolist()

    assert shades(even, 5) == pytest.approx(SHADES, abs=3)
    assert shades(even, 10) == pytest.approx(np.repeat(SHADES, 2), abs=3)
    assert shades(slow, 5) == pytest.approx([0, 0, 0, 120, 240], abs=3)
    assert read_image(Path("x"), even).max() <= 3


def test_a_picture_for_viewers_that_cannot_move_it_is_no_frame() -> None:
    data = moving("PNG", [100] * 5, default_image=True)
    assert read_frames(Path("x"), 4, data)[:, 0, 0, 0].tolist() == list(SHADES[1:])


def test_pages_are_frames_and_previews_are_not(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), shade) for shade in SHADES]
    pages[0].save(
        tmp_path / "stack.tif", save_all=True, append_images=[*pages[1:], Image.new("L", (2, 2), 99)]
    )
    assert read_images(tmp_path / "stack.tif", 5)[:, 0, 0, 0].tolist() == list(SHADES)
    pages[1].save(tmp_path / "burst.jpg", "MPO", save_all=True, append_images=[pages[4]])
    assert read_images(tmp_path / "burst.jpg", 3)[:, 0, 0, 0].tolist() == pytest.approx([60] * 3, abs=3)


def test_all_eight_orientations_are_upright_and_damaged_exif_is_ignored() -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = RED
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose, the inverse of each
    for orientation, turn in undo.items():
        stored = Image.fromarray(upright)
        stored = stored if turn is None else stored.transpose(Image.Transpose(turn))
        exif = Image.Exif()
        exif[0x0112] = orientation
        np.testing.assert_array_equal(read_image(Path("x"), packed(stored, format="PNG", exif=exif)), upright)
    for block in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0no", b"MM\0*\0\0\0\x08\0\x01"):
        broken = packed(Image.fromarray(upright), format="PNG", exif=block)
        np.testing.assert_array_equal(read_image(Path("x"), broken), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_a_large_photo_is_read_in_bands(monkeypatch: pytest.MonkeyPatch, mode: str, orientation: int) -> None:
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (17, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = packed(noise.convert(mode), format="TIFF", exif=exif)
    whole = read_image(Path("x"), data)
    monkeypatch.setattr("fedstill.datasets.decoding.image_files.BAND", 5 * 24)
    np.testing.assert_array_equal(read_image(Path("x"), data), whole)


def test_a_tiff_without_its_last_rows_is_named() -> None:
    data = packed(Image.new("RGB", (24, 16), RED), format="TIFF")
    height = struct.pack("<HHII", 257, 4, 1, 16)
    if height not in data:
        height = struct.pack("<HHIHH", 257, 3, 1, 16, 0)
    taller = data.replace(height, height.replace(b"\x10", b"\x20"))
    assert taller != data
    with pytest.raises(DataError, match=r"tall\.tif: is damaged: it holds 16 of 32 rows"):
        read_image(Path("tall.tif"), taller)


def test_content_decides_not_the_ending() -> None:
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF", "JPEG2000"):
        data = packed(Image.new("RGB", (16, 16), RED), format=form)
        assert looks_like_picture(data[:64]), form
        assert read_image(Path("wrong.dat"), data)[0, 0].tolist() == pytest.approx(RED, abs=12)
    assert not looks_like_picture(b"clip_id,split,speaker")
    assert not looks_like_picture(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41")


def test_hidden_files_are_no_frames() -> None:
    assert in_natural_order(["a/._2.png", "a/10.png", "a/2.PNG", "a/.DS_Store"]) == ["a/2.PNG", "a/10.png"]


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF", "JPEG2000", "TGA", "QOI"]
)
def test_damaged_pictures_raise_nothing_but_one_line(form: str) -> None:
    generator = np.random.default_rng(1)
    noise = Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8))
    whole = np.frombuffer(packed(noise, format=form), np.uint8)
    for _ in range(40):
        damaged = whole[: generator.integers(1, len(whole) + 1)].copy()
        damaged[generator.integers(0, len(damaged), 4)] = generator.integers(0, 256, 4)
        complaint = ""
        try:
            frames = read_frames(Path("damaged"), 2, damaged.tobytes())
        except DataError as error:
            complaint = str(error)
        assert re.fullmatch("damaged: .*", complaint) if complaint else frames.shape[::3] == (2, 3)
        assert "_io." not in complaint


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    plain = packed(Image.new("RGB", (4, 4)), format="QOI")
    with pytest.raises(DataError, match=r"big: has too many pixels \(12000 x 12000\): make it smaller"):
        read_image(Path("big"), plain[:4] + struct.pack(">II", 12_000, 12_000) + plain[12:])


def test_a_large_photo_is_not_copied_for_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedstill.datasets.decoding.image_files.LARGE_BYTES", 5000)
    frames = read_frames(Path("x"), 10, packed(Image.new("L", (30, 20), 77), format="PNG"))
    assert frames.shape == (10, 20, 30, 3)
    assert (frames.strides[0], frames[9, 0, 0, 0]) == (0, 77)
    monkeypatch.setattr("fedstill.datasets.decoding.image_files.MOST_PIXELS", 4 * 32 * 32)
    assert read_frames(Path("small"), 4, moving("GIF", [100] * 5)).shape == (4, 32, 32, 3)
    with pytest.raises(DataError, match=r"big: has too many pixels \(5 frames of 32 x 32\): make it smaller"):
        read_frames(Path("big"), 5, moving("GIF", [100] * 5))


def test_heic_is_read_or_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf"
    assert is_heic(head)
    assert not is_heic(head.replace(b"heic", b"avif"))
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"photo\.heic: is a HEIC picture: install fedstill\[heic\]"):
        read_image(Path("photo.heic"), head + b"\0" * 100)


def test_a_heic_picture(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :32] = RED
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(upright, 1))
    heif.from_pillow(stored).save(tmp_path / "photo.heic", exif=exif.tobytes(), quality=90)
    pixels = read_image(tmp_path / "photo.heic")
    assert pixels.shape == upright.shape
    assert pixels[10, 10].tolist() == pytest.approx(RED, abs=12)
    assert pixels[50, 80].max() < 12
    (tmp_path / "cut.heic").write_bytes((tmp_path / "photo.heic").read_bytes()[:300])
    with pytest.raises(DataError, match=r"cut\.heic: cannot decode this image"):
        read_image(tmp_path / "cut.heic")
