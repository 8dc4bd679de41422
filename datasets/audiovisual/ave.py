"""AVE in its published layout: 28 kinds of audio-visual events in 10-second videos (arXiv 1803.08842).

The published lists have three traps, which are handled here once. The training list lacks one row of Annotations.txt
(which is why the thesis counts 3741 public clips). Videos occur in several rows, eight of them on both sides of the
split. And the class order of the thesis' line of work is neither alphabetical nor that of Annotations.txt.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import ClipInfo, Split

NAME = "ave"


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the lists: an event of class ``info.label`` from ``start`` to ``end`` of a video.

    Both are seconds from the first moment of picture or sound that a player shows.
    """

    info: ClipInfo
    video_id: str
    start: float
    end: float


class _Row(NamedTuple):
    category: str
    video_id: str
    start: float
    end: float


def read_events(root: Path, deduplicate: bool = False) -> tuple[tuple[str, ...], tuple[Event, ...]]:
    """The class names and all events, in the order training, validation, forgotten (in no list), test.

    Test rows are private, all others public. Classes are numbered by first appearance in testSet.txt. The
    clip_id is the video's id, with ~2, ~3 on repeated rows of one video. AVE has no speakers; the video id takes their
    place, so that a split by speaker never divides a video.

    Args:
        root: holds Annotations.txt, trainSet.txt, valSet.txt and testSet.txt.
        deduplicate: keep one row per video, a private one if there is one. The published numbers do not.

    Raises:
        DataError: an unreadable list or row, a list that contradicts Annotations.txt, an unknown class.
    """
    train, val, test = (_read_list(root / f"{name}Set.txt") for name in ("train", "val", "test"))
    annotations = _read_list(root / "Annotations.txt")
    forgotten = Counter(annotations)
    forgotten.subtract(train + val + test)
    unknown = [row.video_id for row, count in forgotten.items() if count < 0]
    if unknown:
        raise DataError(
            f"{root}: {unknown[0]} is in a list but not so in Annotations.txt: use AVE's own files"
        )
    class_names = tuple(dict.fromkeys(row.category for row in test))
    strange = {row.category for row in annotations} - set(class_names)
    if strange:
        raise DataError(f"{root / 'testSet.txt'}: has no row of class {min(strange)}: use AVE's own lists")
    public = train + val + list((+forgotten).elements())
    if deduplicate:
        test = _one_per_video(test, set())
        public = _one_per_video(public, {row.video_id for row in test})
    seen: Counter[str] = Counter()
    splits: tuple[tuple[Split, list[_Row]], ...] = (("public", public), ("private", test))
    events = []
    for split, rows in splits:
        for row in rows:
            seen[row.video_id] += 1
            repeat = f"~{seen[row.video_id]}" if seen[row.video_id] > 1 else ""
            info = ClipInfo(row.video_id + repeat, split, row.video_id, class_names.index(row.category))
            events.append(Event(info, row.video_id, row.start, row.end))
    return class_names, tuple(events)


def video_path(root: Path, video_id: str) -> Path:
    """Where the video with its sound lies below ``root``."""
    return root / "AVE" / f"{video_id}.mp4"


def _one_per_video(rows: list[_Row], taken: set[str]) -> list[_Row]:
    first: dict[str, _Row] = {}
    for row in rows:
        if row.video_id not in taken:
            first.setdefault(row.video_id, row)
    return list(first.values())


def _read_list(path: Path) -> list[_Row]:
    """Rows of class&id&quality&start&end; a header is allowed, empty lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: put AVE's lists there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not readable text ({error}): download it again") from error
    if lines and lines[0].strip().lower().endswith("&starttime&endtime"):
        lines[0] = ""
    return [_parse(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(where: str, line: str) -> _Row:
    try:
        category, video_id, _quality, start, end = line.strip().split("&")
        row = _Row(category, video_id, float(start), float(end))
    except ValueError as error:
        raise DataError(f"{where}: is {line!r}: write class&id&quality&start&end") from error
    if not 0 <= row.start <= row.end < float("inf"):
        raise DataError(f"{where}: start {start} and end {end} are no stretch of time: correct the row")
    if not video_id or "/" in video_id or video_id.startswith("."):
        raise DataError(f"{where}: {video_id!r} is no video id: correct the row")
    return row
