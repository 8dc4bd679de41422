"""A page with a few clips of every class as a model sees them: a strip of frames and the matrix of the sound.

Errors of a set that no number shows are seen at once: faces cut off, pictures on their side, hum, a wrong class. The
page is one file without scripts; pictures are inlined and nothing is fetched.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipSource
from fedstill.datasets.audiovisual.clip_tensors import clip_tensors
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
from fedstill.datasets.decoding.image_files import spread

PER_CLASS = 4
MOST_FRAMES = 10
STRIP_REM = 7
STRIP_HEIGHT, MATRIX_WIDTH, MATRIX_HEIGHT = 112, 400, 128
GAP = 2
"""Pixels between frames."""
COLOURS = ((20, 11, 52), (85, 15, 109), (159, 42, 99), (217, 80, 56), (246, 146, 32), (252, 255, 164))
"""Dark is quiet, light is loud."""

STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; border-bottom: 1px solid #8884; margin-top: 2rem; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .6rem; border: 1px solid #8884; border-radius: .4rem; overflow: hidden; }
img { display: block; height: auto; image-rendering: pixelated; margin-bottom: .4rem; }
img.sound { width: 100%; height: 7rem; }
figcaption, p { font-size: .88rem; overflow-wrap: anywhere; } .bad { color: #c33; }
"""


def picture_sheet(
    source: ClipSource, audio: AudioSpec, frames: FrameSpec, feature_steps: int | None = None
) -> str:
    """The page as HTML. Clips that cannot be decoded are told in their place.

    Args:
        source: any data set.
        audio, frames: how a model gets the clips.
        feature_steps: columns of ready feature matrices (see ``build_store``).
    """
    parts = []
    for label, name in [*enumerate(source.class_names), (None, "without a label")]:
        positions = [place for place, info in enumerate(source.index) if info.label == label]
        if positions or label is not None:
            clips = [
                _figure(source, place, audio, frames, feature_steps) for place in _chosen(source, positions)
            ]
            heading = f"{escape(name)} <small>({_clips(len(positions))})</small>"
            parts.append(f'<h2>{heading}</h2><div class="clips">{"".join(clips)}</div>')
    matrix = f"{audio.representation} of {audio.seconds:g} s" if feature_steps is None else "features"
    kind = "grey" if frames.channels == 1 else "colour"
    title = f"{escape(source.name)}: what a model sees"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>Up to {PER_CLASS} clips of each class. Above: frames in time order, {frames.size} x {frames.size} pixels, "
        f"{kind}. Below: {escape(matrix)}, time from left to right, low bins at the bottom, "
        "light is loud.</p>" + "\n".join(parts) + "</body></html>\n"
    )


def _chosen(source: ClipSource, positions: Sequence[int]) -> list[int]:
    """Some positions of both splits, evenly spaced: neighbours are often of one speaker."""
    sides = [
        [place for place in positions if source.index[place].split == split]
        for split in ("public", "private")
    ]
    half = PER_CLASS // 2
    room = [half + max(0, half - len(sides[1])), half + max(0, half - len(sides[0]))]
    return [
        side[place]
        for side, most in zip(sides, room, strict=True)
        for place in spread(min(most, len(side)), len(side))
    ]


def _figure(
    source: ClipSource, position: int, audio: AudioSpec, frames: FrameSpec, feature_steps: int | None
) -> str:
    info = source.index[position]
    told = f"<b>{escape(info.clip_id)}</b> {info.split}, {escape(info.speaker)}"
    try:
        clip = source.load(position)
        made = clip_tensors(clip, audio, frames, audio_features, feature_steps)
        strip, matrix = _strip(made.frames), _matrix(made.audio)
    except DataError as error:
        return f'<figure><figcaption>{told}<br><span class="bad">{escape(str(error))}</span></figcaption></figure>'
    width = f"width: min(100%, {STRIP_REM * strip.width / strip.height:.2f}rem)"
    return (
        f'<figure><img style="{width}" src="{_inlined(strip, "JPEG", quality=90)}" alt="frames">'
        f'<img class="sound" src="{matrix}" alt="sound"><figcaption>{told}, {_facts(clip)}</figcaption></figure>'
    )


def _facts(clip: Clip) -> str:
    height, width = clip.frames.shape[1:3]
    picture = f"{height} x {width}"
    if not clip.sample_rate:
        return f"{clip.audio.shape[0]} features, {clip.audio.shape[1]} columns, {picture}"
    return f"{len(clip.audio) / clip.sample_rate:.2f} s, {clip.sample_rate} Hz, {picture}"


def _strip(frames: npt.NDArray[np.uint8]) -> Image.Image:
    """(count, channels, size, size) side by side."""
    pictures = frames[spread(min(len(frames), MOST_FRAMES), len(frames))].transpose(0, 2, 3, 1)
    count, height, width, channels = pictures.shape
    page = np.full((height, count * (width + GAP) - GAP, channels), 128, np.uint8)
    for number, picture in enumerate(pictures):
        page[:, number * (width + GAP) : number * (width + GAP) + width] = picture
    image = Image.fromarray(page[..., 0] if channels == 1 else page)
    if height > STRIP_HEIGHT:
        image = image.resize(
            (max(1, image.width * STRIP_HEIGHT // height), STRIP_HEIGHT), Image.Resampling.BOX
        )
    return image


def _matrix(features: npt.NDArray[np.float32]) -> str:
    """(bins, steps) with the lowest bin at the bottom, from the quietest to the loudest value, as a PNG."""
    low, high = float(features.min()), float(features.max())
    scaled = (features - low) / (high - low) if high > low else np.zeros_like(features)
    image = Image.fromarray(np.rint(scaled[::-1] * 255).astype(np.uint8))
    size = min(image.width, MATRIX_WIDTH), min(image.height, MATRIX_HEIGHT)
    image = image.resize(size, Image.Resampling.BOX)
    image.putpalette(_palette())
    return _inlined(image, "PNG", optimize=True)


def _palette() -> list[int]:
    places = np.linspace(0, 255, len(COLOURS))
    channels = [np.interp(np.arange(256), places, column) for column in zip(*COLOURS, strict=True)]
    return [int(value) for value in np.rint(np.stack(channels, axis=1)).ravel()]


def _inlined(image: Image.Image, form: str, **options: object) -> str:
    file = BytesIO()
    image.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count} clips"
