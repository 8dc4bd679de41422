"""From clips on disk to a student of one's own: manifest, experiment, student, a new clip."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

import fedstill

RATE = 16_000
MOODS = {"calm": (180.0, (60, 90, 200)), "cross": (420.0, (200, 70, 50))}
"""Pitch in Hz, and the colour of the picture."""


def write_clip(folder: Path, name: str, mood: str, random: np.random.Generator) -> None:
    """One second of sound and one picture, NAME.wav and NAME.png."""
    pitch, colour = MOODS[mood]
    seconds = np.arange(RATE) / RATE
    tone = 0.4 * np.sin(2 * np.pi * pitch * random.uniform(0.9, 1.1) * seconds)
    soundfile.write(folder / f"{name}.wav", tone + random.normal(0, 0.05, RATE), RATE)
    picture = np.array(colour) + random.normal(0, 30, (48, 48, 3))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")


def write_clips(folder: Path, per_mood: int = 6) -> Path:
    """Public clips of three speakers, private ones of two, and the manifest that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["clip_id", "split", "speaker", "label", "audio", "frames"])
        for speaker in ("ann", "bob", "cem", "dora", "emil"):
            split = "private" if speaker in ("dora", "emil") else "public"
            for mood in MOODS:
                for number in range(per_mood):
                    name = f"{speaker}-{mood}-{number}"
                    write_clip(folder, name, mood, random)
                    rows.writerow([name, split, speaker, mood, f"{name}.wav", f"{name}.png"])
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for clips and run")
    out = parser.parse_args().out

    manifest = write_clips(out / "clips")
    dataset = fedstill.open_dataset(manifest)
    print(f"{len(dataset.index)} clips, classes {', '.join(dataset.class_names)}")

    results = fedstill.run_experiment(
        Path(__file__).with_name("my_clips.toml"),
        out / "run",
        [f"dataset.manifest={manifest.resolve()}"],
        engine="inprocess",
    )
    for row in results.rows:
        print(f"device {row.client}, {row.arm}: {row.correct} of {row.total} clips right")
    print(f"report: {out / 'run' / 'report.html'}")

    write_clip(out, "new", "cross", np.random.default_rng(1))
    student = fedstill.load_student(out / "run", client=0)
    found = student.classify_file(out / "new.wav")  # its picture lies beside it, as new.png
    print(f"new clip: {found.label} ({found.probability:.0%})")


if __name__ == "__main__":
    main()
