"""The published splits, counted: the thesis' tables are fractions of exactly these numbers."""

from __future__ import annotations

from collections import Counter
from math import ceil
from pathlib import Path

import pytest

from fedstill.datasets.audiovisual import ave
from fedstill.datasets.audiovisual.clip import EMOTIONS, ClipInfo
from fedstill.datasets.audiovisual.cremad import CODES, read_split

pytestmark = pytest.mark.data


def per_class(clips: list[ClipInfo], class_count: int) -> list[int]:
    counts = Counter(clip.label for clip in clips)
    return [counts[label] for label in range(class_count)]


def clients(counts: list[int]) -> list[int]:
    """Private clips of the two clients: the first half of the classes, and the second."""
    half = len(counts) // 2
    return [sum(counts[:half]), sum(counts[half:])]


def latency_sensitive(counts: list[int]) -> list[int]:
    """Those tested where half of each class is the query."""
    return clients([ceil(count / 2) for count in counts])


def test_crema_d(data_dir: Path) -> None:
    clips = read_split(data_dir / "cremad_sample" / "split.csv")
    public = [clip for clip in clips if clip.split == "public"]
    private = [clip for clip in clips if clip.split == "private"]
    assert (len(public), len(private)) == (6698, 744)
    assert len({clip.clip_id for clip in clips}) == 7442
    assert per_class(public, 6) == [973, 1148, 1131, 1138, 1142, 1166]
    assert per_class(private, 6) == [114, 123, 140, 133, 129, 105]
    assert clients(per_class(private, 6)) == [377, 367]
    assert latency_sensitive(per_class(private, 6)) == [189, 185]
    assert len({clip.speaker for clip in public}) == len({clip.speaker for clip in private}) == 91


def test_crema_d_class_order_is_that_of_the_ids(data_dir: Path) -> None:
    names = dict(zip(CODES, EMOTIONS, strict=True))
    assert names == {
        "NEU": "neutral",
        "HAP": "happy",
        "SAD": "sad",
        "FEA": "fear",
        "DIS": "disgust",
        "ANG": "angry",
    }
    clips = read_split(data_dir / "cremad_sample" / "split.csv")
    assert all(clip.clip_id.split("_")[2] == CODES[clip.label or 0] for clip in clips)


def test_ave(data_dir: Path) -> None:
    class_names, events = ave.read_events(data_dir / "ave_meta")
    public = [event.info for event in events if event.info.split == "public"]
    private = [event.info for event in events if event.info.split == "private"]
    assert (len(class_names), len(events)) == (28, 4143)
    assert (len(public), len(private)) == (3741, 402)
    assert clients(per_class(private, 28)) == [223, 179]
    assert latency_sensitive(per_class(private, 28)) == [115, 91]
    assert (class_names[0], class_names[13], class_names[14]) == (
        "Church bell",
        "Motorcycle",
        "Acoustic guitar",
    )
    assert len({event.info.clip_id for event in events}) == 4143
    assert [event.video_id for event in events if event.start == event.end] == ["VWi2ENBuTbw"]


def test_ave_without_repeated_videos(data_dir: Path) -> None:
    _, events = ave.read_events(data_dir / "ave_meta", deduplicate=True)
    splits = Counter(event.info.split for event in events)
    assert len({event.video_id for event in events}) == len(events) == 4097
    assert splits == {"public": 3695, "private": 402}
