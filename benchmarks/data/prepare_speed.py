"""How long `fedstill data prepare` takes for films as of CREMA-D and AVE, beside a plain decoder and another revision.

CREMA-D: one second of 480 x 360 pixels at 30 frames a second, Sorenson H.263 and MP3 in FLV. AVE: ten seconds of 320 x
240 pixels at 25 frames a second, MPEG-4 and AAC in MP4, of which an event of two to eight seconds is used. A few films
of each kind are made and linked under many names. The plain decoder reads every frame and sample with PyAV and keeps
nothing: no clip can cost less, unless not all of it is decoded. ``--against`` names a checkout of another revision
(``git worktree add``), which prepares the same films. All take turns, batch by batch, each in a process of its own;
times are of the CPU, without imports, and ratios are medians over the batches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import av
import numpy as np
from rich.console import Console

HERE = "fedstill"
PLAIN = "plain PyAV"
SOUND_RATE = 44_100
FILMS = 5
"""Different ones of a kind."""
CODES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
PREPARE = """
import json, sys, time
from pathlib import Path
import scipy.signal
try:
    from fedstill.datasets.audiovisual import prepare
except ImportError:  # an older layout
    from fedstill.datasets import prepare
kind, root, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
begun, cpu = time.perf_counter(), time.process_time()
report = getattr(prepare, "prepare_" + kind)(root, out, workers=1)
print(json.dumps([time.process_time() - cpu, time.perf_counter() - begun, report.counts["prepared"]]))
"""
DECODE = """
import json, sys, time
from pathlib import Path
import av
begun, cpu, films = time.perf_counter(), time.process_time(), sorted(Path(sys.argv[2]).glob("*/*.[fm][lp][v4]"))
for film in films:
    for kind in ("audio", "video"):
        with av.open(str(film)) as container:
            for frame in container.decode(**{kind: 0}):
                pass
print(json.dumps([time.process_time() - cpu, time.perf_counter() - begun, len(films)]))
"""


def main(arguments: Sequence[str]) -> None:
    """Make films, let all ways take turns, print medians."""
    options = _options(arguments)
    clips, batches = (4, 1) if options.quick else (options.clips, options.batches)
    console = Console(soft_wrap=True, highlight=False)
    ways = {HERE: (PREPARE, Path(__file__).parents[2]), PLAIN: (DECODE, Path(__file__).parents[2])}
    for other in options.against:
        ways[other] = (PREPARE, Path(other))
    for kind, make in (("cremad", _cremad_like), ("ave", _ave_like)):
        times: dict[str, list[float]] = {way: [] for way in ways}
        walls = dict.fromkeys(ways, 0.0)
        with tempfile.TemporaryDirectory() as scratch:
            root = make(Path(scratch) / "raw", clips // batches)
            for batch in range(batches):
                for way in list(ways)[:: 1 if batch % 2 else -1]:
                    script, checkout = ways[way]
                    out = Path(scratch) / f"{batch}-{list(ways).index(way)}"
                    cpu, wall, count = _run(script, checkout, kind, root, out)
                    if count != clips // batches:
                        raise SystemExit(f"{way} prepared {count} of {clips // batches} clips")
                    times[way].append(cpu / count)
                    walls[way] += wall
        for way, found in times.items():
            ratio = median(mine / theirs for mine, theirs in zip(times[HERE], found, strict=True))
            console.print(
                f"{kind:<7}{clips} clips, {way:<22} {1e3 * median(found):6.1f} ms of CPU a clip, "
                f"{clips / walls[way]:6.1f} clips/s; ratio of fedstill to it {ratio:5.2f}"
            )


def _run(script: str, checkout: Path, kind: str, root: Path, out: Path) -> tuple[float, float, int]:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "importroot")}
    done = subprocess.run(
        [sys.executable, "-c", script, kind, str(root), str(out)],
        env=environment, capture_output=True, text=True, check=False, cwd=root,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu, wall, count = json.loads(done.stdout.splitlines()[-1])
    return cpu, wall, count


def _cremad_like(root: Path, clips: int) -> Path:
    films = [_film(root / f"{n}.flv", 1, 30, (360, 480), n) for n in range(FILMS)]
    (root / "VideoFlash").mkdir()
    rows = ["clip_id,label,split"]
    for number in range(clips):
        code = CODES[number % len(CODES)]
        name = f"{1000 + number}_DFA_{code}_XX"
        os.link(films[number % FILMS], root / "VideoFlash" / f"{name}.flv")
        rows.append(f"{name},{code},{'public' if number % 4 else 'private'}")
    (root / "split.csv").write_text("\n".join(rows) + "\n")
    return root


def _ave_like(root: Path, clips: int) -> Path:
    films = [_film(root / f"{n}.mp4", 10, 25, (240, 320), n) for n in range(FILMS)]
    (root / "AVE").mkdir()
    rows: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in range(clips):
        split = ("train", "val", "test", "train")[number % 4]
        start = number % 5
        rows[split].append(f"Bell&film{number}&good&{start}&{start + 2 + number % 4}")
        os.link(films[number % FILMS], root / "AVE" / f"film{number}.mp4")
    for split, lines in rows.items():
        (root / f"{split}Set.txt").write_text("\n".join(lines) + "\n")
    everything = [line for lines in rows.values() for line in lines]
    header = "Category&VideoID&Quality&StartTime&EndTime"
    (root / "Annotations.txt").write_text("\n".join([header, *everything]) + "\n")
    return root


def _film(path: Path, seconds: int, rate: int, size: tuple[int, int], seed: int) -> Path:
    """A textured picture that drifts, and a chirp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    sound = np.sin(np.arange(seconds * SOUND_RATE) ** 1.3 / 40).astype(np.float32)[None] / 4
    is_flv = path.suffix == ".flv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("flv" if is_flv else "mpeg4", rate=rate)
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("libmp3lame" if is_flv else "aac", rate=SOUND_RATE, layout="mono")
        heard = av.AudioFrame.from_ndarray(sound, "fltp", "mono")
        heard.sample_rate = SOUND_RATE
        fifo = av.AudioFifo()
        fifo.write(heard)
        for number in range(seconds * rate):
            picture = np.ascontiguousarray(np.roll(texture, number, axis=1))
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(audio.encode(fifo.read(SOUND_RATE // rate, partial=True)))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200, help="of each kind")
    parser.add_argument("--batches", type=int, default=5, help="turns of each way")
    parser.add_argument(
        "--against", action="append", default=[], help="checkout of another revision; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="does it still work?")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
