"""What the program ffmpeg shows and plays of a file, and when: a decoder that shares nothing with our readers.

PyAV has FFmpeg's libraries inside, too, but in another version than this program, and it is the program that decides
which track is played, which packets are shown, how they are turned, and how sound lies on the clock of the pictures.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

PICTURE = ("-an", "-fps_mode", "passthrough", "-enc_time_base", "demux")
# Whatever the time stamps leave out is silence; jitter of less than 10 ms is not.
SOUND = ("-vn", "-af", "aresample=async=1:min_hard_comp=0.01:first_pts=0")

CHANNELS = {
    "mono": 1,
    "stereo": 2,
    "5.1": 6,
    "5.1(side)": 6,
    "hexadecagonal": 16,
    "9.1.6": 16,
    "16 channels": 16,
}
"""By ffmpeg's name of the layout."""


@dataclass(frozen=True)
class Played:
    """``pictures``: uint8 RGB (count, height, width, 3), upright; ``times``: when each begins (s).

    ``sound``: float32 (samples,), the mean of its channels, with silence for what is absent; ``rate``: Hz. Both count
    from the first moment of the file.
    """

    pictures: np.ndarray
    times: np.ndarray
    sound: np.ndarray
    rate: int


def play(path: Path, *, picture: bool, sound: bool) -> Played:
    """The tracks that a player chooses by itself, in one process. ``picture``, ``sound``: what the file has."""
    outputs: list[str | Path] = []
    files = [path.with_name(f"{path.name}.{name}") for name in ("pixels", "frames", "samples", "blocks")]
    pixels, frames, samples, blocks = files
    if picture:
        outputs += [
            *PICTURE,
            "-pix_fmt",
            "rgb24",
            "-f",
            "rawvideo",
            pixels,
            *PICTURE,
            "-f",
            "framecrc",
            frames,
        ]
    if sound:
        outputs += [*SOUND, "-f", "f32le", samples, "-vn", "-f", "framecrc", blocks]
    program = imageio_ffmpeg.get_ffmpeg_exe()
    done = subprocess.run(
        [program, "-nostdin", "-hide_banner", "-v", "error", "-y", "-i", path, *outputs],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    header, times = _listed(frames) if picture else ({}, np.zeros(0))
    sound_header, _ = _listed(blocks) if sound else ({}, np.zeros(0))
    shown, heard, rate = np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0, np.float32), 0
    if picture:
        width, height = map(int, header["dimensions"].split("x"))
        shown = np.fromfile(pixels, np.uint8).reshape(-1, height, width, 3)
        assert len(shown) == len(times)
    if sound:
        rate, layout = int(sound_header["sample_rate"]), sound_header["channel_layout_name"]
        channels = CHANNELS[layout]
        heard = np.fromfile(samples, np.float32).reshape(-1, channels).mean(axis=1)
    for file in files:
        file.unlink(missing_ok=True)
    return Played(shown, times, heard, rate)


def _listed(path: Path) -> tuple[dict[str, str], np.ndarray]:
    """The header of ffmpeg's list of frames, and when each begins (s)."""
    lines = path.read_text().splitlines()
    pairs = (line[1:].split(" 0: ", 1) for line in lines if line.startswith("#") and " 0: " in line)
    header = dict(pairs)
    tick = Fraction(header["tb"])
    stamps = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
    return header, np.array([float(stamp * tick) for stamp in stamps])
