"""How many clips a second `fedstill data check` decodes and measures, beside a loop that only decodes.

Clips of three seconds of stereo sound at 44.1 kHz (WAV) and one JPEG of 640 x 480 pixels, the usual form of people's
own sets. The loop reads the same files with soundfile and Pillow in one thread and looks at nothing. Both take turns.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
from PIL import Image
from rich.console import Console

from fedstill.common.cores import usable_cores
from fedstill.datasets.audiovisual.manifest import COLUMNS, ManifestSource
from fedstill.datasets.inspection.dataset_check import check_dataset

SECONDS, RATE = 3, 44_100
DIFFERENT = 20
"""Clips that are made; the others are links to them."""


def main(arguments: Sequence[str]) -> None:
    """Make a set, let both ways take turns, print clips a second."""
    options = _options(arguments)
    clips, rounds = (20, 1) if options.quick else (options.clips, options.rounds)
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        source = ManifestSource(_make(Path(scratch), clips), frame_count=1)
        ways = {
            f"data check, {options.workers} threads": lambda: _check(source, options.workers),
            "data check, 1 thread": lambda: _check(source, 1),
            "soundfile and Pillow": lambda: _decode(Path(scratch), clips),
        }
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for turn in range(rounds + 1):  # the first one fills the page cache and does not count
            for way, work in ways.items():
                measured = _timed(work)
                if turn or options.quick:
                    times[way].append(measured)
    plain = times["soundfile and Pillow"]
    for way, found in times.items():
        wall, cpu = (median(column) for column in zip(*found, strict=True))
        ratio = median(mine[1] / theirs[1] for mine, theirs in zip(found, plain, strict=True))
        console.print(
            f"{way:<24} {clips / wall:6.1f} clips/s, {1e3 * cpu / clips:5.1f} ms of CPU a clip; "
            f"ratio of CPU times to plain decoding {ratio:.2f}"
        )


def _check(source: ManifestSource, workers: int) -> None:
    found = check_dataset(source, workers=workers)
    if len(found.measures) != len(source.index):
        raise SystemExit(f"not all clips were decoded: {found.problems}")


def _decode(folder: Path, clips: int) -> None:
    for number in range(clips):
        soundfile.read(folder / f"{number}.wav", dtype="float32", always_2d=True)
        with Image.open(folder / f"{number}.jpg") as image:
            np.asarray(image.convert("RGB"))


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU time in seconds."""
    begun, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - cpu


def _make(folder: Path, clips: int) -> Path:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(clips):
        sound, picture = folder / f"{number}.wav", folder / f"{number}.jpg"
        if number < DIFFERENT:
            noise = np.cumsum(generator.normal(size=(SECONDS * RATE, 2)), axis=0)
            soundfile.write(sound, noise / np.abs(noise).max() / 2, RATE)
            coarse = Image.fromarray(generator.integers(0, 255, (60, 80, 3), dtype=np.uint8))
            coarse.resize((640, 480)).save(picture, quality=90)
        else:
            os.link(folder / f"{number % DIFFERENT}.wav", sound)
            os.link(folder / f"{number % DIFFERENT}.jpg", picture)
        split = "public" if number % 3 else "private"
        rows.append([f"clip{number}", split, f"s{number % 5}", "sad", sound.name, picture.name])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder / "manifest.csv"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--quick", action="store_true", help="does it still work?")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
