"""Stands in for a device that records: adds clips to a folder, each a WAV and a PNG, and a row of its manifest.csv.

python examples/fleet_on_one_machine/record.py clips-kitchen --clips 48
python examples/fleet_on_one_machine/record.py clips-kitchen --clips 11 --microphone other
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from zlib import crc32

import soundfile
from PIL import Image

from fedstill.datasets.audiovisual.capture.captured import captured_clip
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.clip import Clip
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

COLUMNS = ("clip_id", "split", "speaker", "label", "audio", "frames")
OTHER = Condition("other microphone", "development", sound=(("white_noise", 1.5), ("low_pass", 1.0)))
PER_CLASS = 100


def record(folder: Path, count: int, other: bool) -> int:
    """How many clips are there then; nobody has labelled them."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.csv"
    before = len(manifest.read_text("utf-8").splitlines()) - 1 if manifest.exists() else 0
    seed = crc32(folder.name.encode()) % 1000
    source = SyntheticSource(
        seed, public_per_class=0, private_per_class=PER_CLASS, frame_size=24, frame_count=1
    )
    with manifest.open("a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if not before:
            rows.writerow(COLUMNS)
        for number in range(before, before + count):
            clip = source.load(number)
            write(folder / f"{number:04d}", captured_clip(clip, OTHER, seed) if other else clip)
            rows.writerow(
                [f"{number:04d}", "private", clip.info.speaker, "", f"{number:04d}.wav", f"{number:04d}.png"]
            )
    return before + count


def write(stem: Path, clip: Clip) -> None:
    """Its sound, and its first picture."""
    soundfile.write(stem.with_suffix(".wav"), clip.audio, clip.sample_rate)
    Image.fromarray(clip.frames[0]).save(stem.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, required=True, help="how many to add")
    parser.add_argument("--microphone", choices=["usual", "other"], default="usual")
    options = parser.parse_args()
    print(f"{options.folder}: {record(options.folder, options.clips, options.microphone == 'other')} clips")


if __name__ == "__main__":
    main()
