"""Clips that people really have and that cannot be used: one of each kind, as rows of a device's manifest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from helpers.media import cut, write_sound, write_video

COLUMNS = "clip_id,split,speaker,label,audio,frames"


def _empty(folder: Path) -> tuple[str, str]:
    (folder / "empty.mp4").touch()
    return "empty.mp4", "empty.mp4"


def _truncated(folder: Path) -> tuple[str, str]:
    cut(write_sound(folder / "cut.wav"), 0.5)
    return "cut.wav", "fine.png"


def _no_media(folder: Path) -> tuple[str, str]:
    (folder / "notes.mp4").write_text("a shopping list")
    return "notes.mp4", "notes.mp4"


def _wrong_ending(folder: Path) -> tuple[str, str]:
    (folder / "picture.wav").write_bytes((folder / "fine.png").read_bytes())
    return "picture.wav", "fine.png"


def _sound_alone(folder: Path) -> tuple[str, str]:
    with av.open(str(folder / "memo.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return "memo.m4a", "memo.m4a"


def _folder_for_file(folder: Path) -> tuple[str, str]:
    (folder / "folder.wav").mkdir()
    return "folder.wav", "fine.png"


def _missing(folder: Path) -> tuple[str, str]:
    return "gone.wav", "fine.png"


def _no_samples(folder: Path) -> tuple[str, str]:
    soundfile.write(folder / "nothing.wav", np.empty(0, np.float32), 16_000)
    return "nothing.wav", "fine.png"


def _one_pixel(folder: Path) -> tuple[str, str]:
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    return "fine.wav", "pixel.png"


def _forbidden(folder: Path) -> tuple[str, str]:
    """Root may read everything, so for it this one is a silent film instead."""
    if os.geteuid() == 0:
        write_video(folder / "silent.mp4", sound=False)
        return "silent.mp4", "silent.mp4"
    write_sound(folder / "secret.wav").chmod(0)
    return "secret.wav", "fine.png"


KINDS: dict[str, tuple[str, Callable[[Path], tuple[str, str]]]] = {
    "empty": ("empty", _empty),
    "truncated": ("truncated", _truncated),
    "no media": ("undecodable", _no_media),
    "wrong ending": ("no sound", _wrong_ending),
    "sound alone": ("no picture", _sound_alone),
    "folder": ("folder", _folder_for_file),
    "missing": ("missing", _missing),
    "no samples": ("no sound", _no_samples),
    "one pixel": ("tiny", _one_pixel),
    "forbidden": ("no sound" if os.geteuid() == 0 else "forbidden", _forbidden),
}
"""By name: the fault that it counts as, and what makes its files (audio, frames)."""


def add_bad_clips(manifest: Path, label: str = "") -> dict[str, str]:
    """Append a row of each kind to a device's manifest, and make its files; returns the fault of each new clip."""
    folder = manifest.parent
    write_sound(folder / "fine.wav")
    Image.new("RGB", (8, 8), "red").save(folder / "fine.png")
    found = {}
    with manifest.open("a") as file:
        for name, (fault, make) in KINDS.items():
            audio, frames = make(folder)
            clip_id = f"bad {name}"
            file.write(f"{clip_id},private,me,{label},{audio},{frames}\n")
            found[clip_id] = fault
    return found


def write_good_clips(folder: Path, count: int, label: str = "") -> Path:
    """A manifest of ``count`` clips that share two sounds and two pictures."""
    for number in (0, 1):
        write_sound(folder / f"sound{number}.wav", 0.6, level=0.2 + 0.3 * number)
        Image.new("RGB", (32, 24), ("green", "blue")[number]).save(folder / f"picture{number}.png")
    rows = [
        f"good{number},private,me,{label},sound{number % 2}.wav,picture{number // 2 % 2}.png"
        for number in range(count)
    ]
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join([COLUMNS, *rows]) + "\n")
    return manifest
