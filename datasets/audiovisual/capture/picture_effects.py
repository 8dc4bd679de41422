"""Cameras and light: what happens to the frames of a clip on their way to the file.

Every effect is (frames, strength, rng) -> frames of equal shape, uint8 RGB (count, height, width, 3). Strength 1 is
the value that its docstring gives, a smaller one does less. Lengths are those of a picture of 48 pixels and grow with
the side, grains of noise too, so that a large picture is as damaged after it was made small for a network. Strength
0 is answered by ``PictureEffect`` and never arrives here.
"""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedstill.datasets.decoding.image_files import Frames

Light = npt.NDArray[np.float32]
"""Of every pixel and channel, from 0 to 255: float32 (count, height, width, 3)."""

SIDE = 48  # pixels, to which the lengths below belong
GAMMAS = (0.6, 1.8)
BLUR_SIGMA = 1.0  # pixels
NOISE_DEVIATION = 12.0  # grey values
SIDE_LIGHT_STOPS = 1.0  # the bright side gets twice the light, the other one half of it
CONTRAST = 0.5
MOTION_LENGTH = 7.0  # pixels
JPEG_QUALITY = 10.0
TILT_DEGREES = 15.0
DEFOCUS_RADIUS = 2.5  # pixels
DARK_GAMMA = 2.2
PHOTONS = 200.0  # of a white pixel


def change_gamma(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Brighter with gamma 0.6 or darker with gamma 1.8, as ``rng`` draws, to the power of strength."""
    return _toned(frames, GAMMAS[rng.integers(2)] ** strength)


def blur(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Gaussian with a deviation of 1 pixel."""
    sigma = BLUR_SIGMA * strength * _scale(frames)
    from scipy.ndimage import gaussian_filter  # slow to import, see ``sound_effects``

    return _rounded(gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"))


def sensor_noise(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Gaussian with a deviation of 12 grey values, equal in all channels, so that grey pictures stay grey."""
    return _rounded(frames + np.float32(NOISE_DEVIATION * strength) * _grains(frames, rng))


def side_light(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """A lamp on the left or the right, as ``rng`` draws, and half of the contrast."""
    left_to_right = np.linspace(-1, 1, frames.shape[2], dtype=np.float32)[:, None]
    stops = math.copysign(SIDE_LIGHT_STOPS * strength, rng.uniform(-1, 1))
    lit = np.minimum(frames * np.exp2(np.float32(stops) * left_to_right), 255)
    middle = lit.mean()
    return _rounded(middle + (lit - middle) * np.float32(CONTRAST**strength))


def motion_blur(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Everything moves by 7 pixels, in a direction that ``rng`` draws, while the shutter is open."""
    return _convolved(frames, line_kernel(MOTION_LENGTH * strength * _scale(frames), rng.uniform(0, math.pi)))


def defocus(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Every point becomes a disc with a radius of 2.5 pixels."""
    return _convolved(frames, disc_kernel(DEFOCUS_RADIUS * strength * _scale(frames)))


def jpeg(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Compressed with quality 10 / strength, between 1 and 100, and opened again."""
    quality = round(min(max(JPEG_QUALITY / strength, 1), 100))
    return np.stack([_compressed(frame, quality) for frame in frames])


def camera_tilt(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Turned by 15 degrees, left or right as ``rng`` draws, and enlarged until no corner is empty."""
    angle = math.radians(math.copysign(TILT_DEGREES * strength, rng.uniform(-1, 1)))
    height, width = frames.shape[1:3]
    longer = max(height / width, width / height)
    zoom = abs(math.cos(angle)) + longer * abs(math.sin(angle))
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2, height / 2  # the centre stays
    where = (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)
    turned = [
        Image.fromarray(frame).transform(
            (width, height), Image.Transform.AFFINE, where, Image.Resampling.BILINEAR
        )
        for frame in frames
    ]
    return np.stack([np.asarray(frame) for frame in turned])


def low_light(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Gamma 2.2 and the noise of 200 photons in a white pixel; the variance of shot noise is the light itself."""
    dark = _toned(frames, 1 + (DARK_GAMMA - 1) * strength)
    light = dark.mean(axis=3, keepdims=True, dtype=np.float32)
    deviation = np.float32(strength) * np.sqrt(light * np.float32(255 / PHOTONS))
    return _rounded(dark + deviation * _grains(frames, rng))


def line_kernel(length: float, angle: float) -> Light:
    """float32 (side, side) with sum 1: a line through the middle, each point shared by the four nearest pixels."""
    reach = math.ceil(length / 2) + 1
    along = np.linspace(-length / 2, length / 2, 16 * reach + 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    rows, columns = reach + along * math.sin(angle), reach + along * math.cos(angle)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - top, columns - left
    for row, column, share in (
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ):
        np.add.at(kernel, (row, column), share)
    return np.asarray(kernel / kernel.sum(), np.float32)


def disc_kernel(radius: float) -> Light:
    """float32 (side, side) with sum 1: a disc whose rim is as soft as a pixel is wide."""
    reach = math.ceil(radius)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.clip(radius + 0.5 - np.hypot(offsets[:, None], offsets), 0, 1).astype(np.float32)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _scale(frames: Frames) -> float:
    return float(min(frames.shape[1:3])) / SIDE


def _grains(frames: Frames, rng: np.random.Generator) -> Light:
    """float32 (count, height, width, 1): normal numbers, each as large as a pixel of a picture of ``SIDE``."""
    count, height, width = frames.shape[:3]
    grain = max(1.0, _scale(frames))
    rows, columns = (np.arange(height) / grain).astype(int), (np.arange(width) / grain).astype(int)
    drawn = rng.standard_normal((count, rows[-1] + 1, columns[-1] + 1), np.float32)
    return drawn[:, rows[:, None], columns, None]


def _toned(frames: Frames, gamma: float) -> Frames:
    return _rounded(255 * (np.arange(256) / 255) ** gamma)[frames]


def _convolved(frames: Frames, kernel: Light) -> Frames:
    """Beyond the border the outermost pixels repeat."""
    reach = len(kernel) // 2
    beyond = np.pad(frames, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge").astype(np.float32)
    from scipy.signal import fftconvolve  # slow to import, see ``sound_effects``

    return _rounded(fftconvolve(beyond, kernel[None, :, :, None], mode="valid", axes=(1, 2)))


def _compressed(frame: Frames, quality: int) -> Frames:
    file = BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _rounded(light: npt.NDArray[np.floating]) -> Frames:
    return np.asarray(np.clip(light + 0.5, 0, 255), np.uint8)
