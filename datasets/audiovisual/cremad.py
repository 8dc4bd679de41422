"""CREMA-D in its official layout, with the split and class order of the thesis' line of work.

91 actors say 12 sentences with six emotions. The split (6698 public, 744 private clips) is the one of
OGM-GE (arXiv 2203.15332); it shares all actors between both sides. The class order matters: other code sorts the
classes by name, and a checkpoint of one order is useless under the other. So only the six codes below are accepted as
classes.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import ClipInfo
from fedstill.datasets.files.tables import read_table

NAME = "cremad"
CODES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
"""In the order of ``EMOTIONS``."""


def read_split(path: Path) -> tuple[ClipInfo, ...]:
    """The list of clips, from a CSV with the columns clip_id, label (one of ``CODES``) and split.

    The speaker is the actor, the id's first four digits: 1001_DFA_ANG_XX.

    Raises:
        DataError: an unreadable table or its first bad row, with its line.
    """
    clips: dict[str, ClipInfo] = {}
    for line, row in read_table(path, ("clip_id", "label", "split")):
        clip_id, code, split = row["clip_id"], row["label"], row["split"]
        where = f"{path}, line {line}: "
        if not re.fullmatch(r"\d{4}_[A-Z]{3}_[A-Z]{3}_[A-Z]{1,2}", clip_id):
            raise DataError(
                where + f"clip_id {clip_id!r} is not like 1001_DFA_ANG_XX: use CREMA-D's file names"
            )
        if code not in CODES:
            raise DataError(where + f"label {code!r} is not a class: use {' '.join(CODES)}")
        if split not in ("public", "private"):
            raise DataError(where + f"split is {split!r}: write public or private")
        if clip_id in clips:
            raise DataError(where + f"clip_id {clip_id} is listed twice: keep one row")
        clips[clip_id] = ClipInfo(
            clip_id, "public" if split == "public" else "private", clip_id[:4], CODES.index(code)
        )
    if not clips:
        raise DataError(f"{path}: lists no clips: give the full split list")
    return tuple(clips.values())


def media_paths(root: Path, clip_id: str) -> tuple[Path, Path]:
    """The files of a clip's sound and video below ``root``; the sound is the video itself if AudioWAV lacks the
    clip."""
    sound = root / "AudioWAV" / f"{clip_id}.wav"
    video = root / "VideoFlash" / f"{clip_id}.flv"
    return (sound if sound.exists() else video), video
