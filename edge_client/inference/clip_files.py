"""Which files of a folder make one clip: a video with sound, or a sound file and its picture(s) of the same name.

``walk.mp4`` is a clip; so are ``walk.wav`` with ``walk.jpg``, with a silent ``walk.mp4``, or with a folder ``walk`` of
images. If a sound file and a video have the same name, the two are one clip: sound from the one, pictures from the
other. Two videos of the same name are two clips, and so are two sound files with one picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.decoding import sound_files
from fedstill.datasets.decoding.decode import read_audio, read_video_frames
from fedstill.datasets.decoding.image_files import WHOLE, Frames, read_images, require_visible
from fedstill.datasets.files.picture_formats import IMAGE_SUFFIXES, in_natural_order

SOUND_SUFFIXES = sound_files.SOUND_SUFFIXES | {
    *(".m4a", ".aac", ".opus", ".oga", ".amr", ".3ga", ".caf", ".aif", ".aiff", ".wma", ".mka", ".weba"),
}
VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv", ".m4v", ".3gp", ".3g2", ".ts", ".mts", ".m2ts"),
        *(".mpg", ".mpeg", ".wmv", ".ogv"),
    )
)


def clips_among(paths: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Complete clips in a folder's listing: name of the clip's main file -> its files, main file first.

    Names with a leading dot and unknown suffixes (``.part``, ``.tmp``, ...) are not clips. A sound file without
    pictures is not a clip yet.
    """
    files = sorted((path for path in paths if not path.name.startswith(".")), reverse=True)
    videos = {
        path.stem: path for path in files if path.suffix.lower() in VIDEO_SUFFIXES
    }  # the first of a name
    images = {path.stem: path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    folders = {path.name: path for path in files if path.is_dir() and _images_in(path)}
    clips: dict[str, tuple[Path, ...]] = {}
    paired = set()
    for sound in (path for path in files if path.suffix.lower() in SOUND_SUFFIXES):
        pictures = next((kind[sound.stem] for kind in (videos, images, folders) if sound.stem in kind), None)
        if pictures is not None:
            clips[sound.name] = (sound, pictures)
            paired.add(pictures)
    lone = (path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and path not in paired)
    clips |= {video.name: (video,) for video in lone}
    return dict(sorted(clips.items()))


def _images_in(folder: Path) -> bool:
    try:
        return bool(in_natural_order(map(str, folder.iterdir())))
    except PermissionError:  # such as lost+found
        return False


def files_of_clip(path: Path) -> tuple[Path, ...]:
    """The files of the clip that ``path`` names, by its video or its sound file.

    Raises:
        DataError: no such file, or a sound file without pictures beside it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file: name a video, or a sound file with its pictures beside it")
    clips = clips_among(one for one in path.parent.iterdir() if path.stem in (one.stem, one.name))
    for files in clips.values():
        if path in files:
            return files
    raise DataError(
        f"{path}: is no clip: name a video ({', '.join(sorted(VIDEO_SUFFIXES))}), or put {path.stem}.jpg, "
        f"{path.stem}.mp4 or a folder {path.stem} with images beside the sound file"
    )


def read_clip(path: Path, frame_count: int) -> Clip:
    """Decode the clip that ``path`` names; it has no label and no speaker.

    Args:
        path: its video or its sound file.
        frame_count: how many frames to take, uniformly spaced in time.

    Raises:
        DataError: not a clip, or undecodable; names the file and what to do.
    """
    files = files_of_clip(path)
    return decode_clip(files[0], files[-1], frame_count)


def decode_clip(sound: Path, pictures: Path, frame_count: int) -> Clip:
    """Decode sound from one file and pictures from another, or both from one video.

    Args:
        sound: a sound file, or a video with sound.
        pictures: a video, an image, or a folder of images.
        frame_count: how many frames to take, uniformly spaced in time.

    Raises:
        DataError: undecodable; names the file and what to do.
    """
    audio, sample_rate = read_audio(sound)
    seconds = len(audio) / sample_rate

    def between(start: float, end: float | None) -> Frames:
        if pictures.is_dir() or pictures.suffix.lower() in IMAGE_SUFFIXES:
            part = WHOLE if end is None else (start / seconds, end / seconds)
            return read_images(pictures, frame_count, part)
        return read_video_frames(pictures, frame_count, start=start, end=end, hold=end is not None)

    frames = np.ascontiguousarray(require_visible(pictures, between(0.0, None)))
    return Clip(ClipInfo(sound.stem, "private", "", None), audio, frames, sample_rate, between)
