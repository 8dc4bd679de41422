"""A small dataset of real media files: a class is a tone and a place in the picture, both under noise.

Public clips of a few speakers, and the private ones of one more, in a folder each. A clip is a WAV file with a PNG
picture beside it under its name, as ``fedstill agent infer`` expects it, or one video; its id is the path of its main
file.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from helpers.media import write_video

LABELS = ("calm", "fear", "glad", "hate", "numb", "sad")
PUBLIC_SPEAKERS = 4
PER_CLASS = {"public": 3, "private": 4}
COLUMNS = ("clip_id", "split", "speaker", "label", "audio", "frames")


def write_clip_files(folder: Path) -> Path:
    """Write the files; returns their manifest."""
    rng = np.random.default_rng(3)
    rows = []
    for speaker in range(PUBLIC_SPEAKERS + 1):
        split = "public" if speaker < PUBLIC_SPEAKERS else "private"
        for label, name in enumerate(LABELS):
            for take in range(PER_CLASS[split]):
                stem = f"{split}/{speaker}-{name}-{take}"
                audio, pictures = _clip(folder, stem, label, take, rng)
                rows.append((audio, split, f"speaker{speaker}", name, audio, pictures))
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return manifest


def _clip(folder: Path, stem: str, label: int, take: int, rng: np.random.Generator) -> tuple[str, str]:
    """Main file and pictures. Some clips are videos, and no two takes have the same rate, length and silence."""
    if take == 3:
        name = f"{stem}.{'flv' if label % 2 else 'mp4'}"
        write_video(folder / name, frames=8 + label, level=0.1 * (1 + label))
        return name, name
    rate, seconds = (16_000, 22_050, 44_100)[take % 3], 0.4 + 0.15 * take
    time = np.arange(round(rate * seconds)) / rate
    sound = np.sin(2 * np.pi * 250 * 1.6**label * time) * rng.uniform(0.05, 0.2)
    sound += rng.normal(scale=0.08, size=len(time))
    sound[: round(0.05 * take * rate)] = 0
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{stem}.wav", sound.astype(np.float32), rate)
    height, width = 40 + 4 * take, 48
    picture = rng.normal(110, 30, size=(height, width, 3))
    row, column = divmod(label, 3)
    picture[row * height // 2 :, column * width // 3 :][: height // 2, : width // 3] += rng.uniform(30, 90)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{stem}.png")
    return f"{stem}.wav", f"{stem}.png"
