"""Which files are pictures: everything that Pillow decodes by itself, and HEIC.

Left out are Encapsulated PostScript, for which Pillow would run another program, and what Pillow only recognises
(MPEG, WMF, HDF5, GRIB, BUFR).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "DIB", "ICO", "CUR", "ICNS"),
    *("PCX", "DCX", "DDS", "PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "FLI", "MSP", "IM", "BLP"),
    *("FTEX", "PCD", "PIXAR", "FITS", "GBR", "IPTC", "TGA"),
)
"""Pillow's names, in the order in which they are tried: TGA, which has no signature, is last."""
MOVING_FORMATS = frozenset({"GIF", "PNG", "WEBP", "AVIF", "FLI", "TIFF"})
"""Those whose frames follow each other in time."""
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif"),
        *(".tiff", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx"),
        *(".j2c", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".ico", ".cur", ".icns", ".pcx", ".dcx"),
        *(".dds", ".psd", ".qoi", ".bw", ".rgb", ".rgba", ".sgi", ".ras", ".xbm", ".xpm", ".fli"),
        *(".flc", ".msp", ".im", ".blp", ".ftc", ".ftu", ".pcd", ".pxr", ".fit", ".fits", ".gbr"),
        *(".iim", ".tga", ".icb", ".vda", ".vst"),
    )
)
HEAD_BYTES = 64
"""How much of a file tells what it is."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_AVIF_BRANDS = (b"avif", b"avis")
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"qoif", b"8BPS"),
)


def in_natural_order(names: Iterable[str]) -> list[str]:
    """The names of images among ``names``, numbers compared as numbers: frame_2.jpg before frame_10.jpg.

    Hidden files are none: macOS puts a ``._frame_2.jpg`` without a picture beside each image on foreign disks.
    """
    paths = map(Path, names)
    images = (
        str(path) for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    return sorted(images, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(20), name))


def is_heic(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is HEIC, which Pillow reads only with pillow-heif."""
    return any(brand in _HEIC_BRANDS for brand in _brands(head)) and not any(
        brand in _AVIF_BRANDS for brand in _brands(head)
    )


def looks_like_picture(head: bytes) -> bool:
    """Whether ``head`` is the beginning of a common picture format, whatever the file's name says."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bmp = head[:2] == b"BM" and head[6:10] == b"\0\0\0\0"
    avif = any(brand in _AVIF_BRANDS for brand in _brands(head))
    return webp or bmp or avif or is_heic(head) or head.startswith(_SIGNATURES)


def is_film(head: bytes) -> bool:
    """Whether ``head`` is the beginning of MP4, QuickTime, Matroska, WebM, FLV or AVI."""
    mp4 = head[4:8] == b"ftyp" and not looks_like_picture(head)
    avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return mp4 or avi or head.startswith((b"\x1a\x45\xdf\xa3", b"FLV\x01"))


def _brands(head: bytes) -> list[bytes]:
    """Of an ISO base media file (MP4, HEIC, AVIF): its own brand, then the compatible ones."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))]
