"""What the generic student says about speakers that it never heard: the measure for every decision about a device.

A device's owner is a new speaker, and of him the cloud has no labels. Of the public speakers it has them, but its
student knows their clips. So the student is trained again without some of the speakers, for each fold of them, and
every public clip is judged by the one student that did not see its speaker (cross-fitting; Stone 1974).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.common.atomic_files import replace_text, replacing

Positions = npt.NDArray[np.int64]
ARRAYS = ("logits", "labels", "speakers")


@dataclass(frozen=True)
class CrossFit:
    """The generic student's logits for public clips of speakers that it was not trained on.

    Attributes:
        logits: float32 (N, classes).
        labels: int64 (N,).
        speakers: int64 (N,), a number for each speaker.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    speakers: npt.NDArray[np.int64]


def speaker_folds(speakers: tuple[str, ...], folds: int) -> npt.NDArray[np.int64]:
    """The fold of each clip, int64 (N,): whole speakers, the largest first, each to the fold with the fewest clips.

    Fewer folds where there are fewer speakers; a single one where there is only one speaker.
    """
    names, speaker, clips = np.unique(np.array(speakers), return_inverse=True, return_counts=True)
    folds = min(folds, len(names))
    fold, filled = np.empty(len(names), np.int64), np.zeros(folds, np.int64)
    for one in np.argsort(-clips, kind="stable"):
        fold[one] = filled.argmin()
        filled[fold[one]] += clips[one]
    return fold[speaker]


def save_cross_fit(found: CrossFit, directory: Path) -> None:
    """Write the arrays and, last, ``done.json``: a folder without it is unfinished."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        with replacing(directory / f"{name}.npy") as part, part.open("wb") as file:
            np.save(file, getattr(found, name), allow_pickle=False)
    replace_text(directory / "done.json", json.dumps({"clips": len(found.labels)}))


def open_cross_fit(directory: Path) -> CrossFit | None:
    """What ``save_cross_fit`` wrote; None if it is not there or not finished."""
    if not (directory / "done.json").exists():
        return None
    return CrossFit(*(np.load(directory / f"{name}.npy", allow_pickle=False) for name in ARRAYS))
