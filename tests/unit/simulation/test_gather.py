"""From devices' folders to clips.json: the arms beside each other, each clip with its recording and speaker."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store
from fedstill.evaluation.results import ClipRow, ResultsError
from fedstill.simulation.gather import gather_clips


class TinySource:
    name, class_names = "tiny", ("calm", "angry")
    index = (
        ClipInfo("a_0", "private", "ann", 0, "a.wav"),
        ClipInfo("a_1", "private", "ann", 0, "a.wav"),
        ClipInfo("b", "private", "bob", 1),
    )

    def load(self, position: int) -> Clip:
        frames = np.zeros((1, 8, 8, 3), np.uint8)
        return Clip(self.index[position], np.full((3, 5), position, np.float32), frames, 0)


def keep(run: Path, client: int, arm: str, clip_ids: list[str], correct: str, seed: int = 0) -> None:
    folder = run / "devices" / str(client) / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    outcome = {"scenario": "latency_insensitive", "arm": arm, "seed": seed}
    outcome |= {"clip_ids": clip_ids, "correct": correct}
    (folder / f"latency_insensitive.{arm}.{seed}.json").write_text(json.dumps(outcome))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for client in (0, 1):
        data = tmp_path / "devices" / str(client) / "data"
        build_store(TinySource(), range(3), AudioSpec(), FrameSpec(size=8, count=1, channels=1), data)
    return tmp_path


def test_recordings_and_speakers_come_from_the_devices_own_clips(run: Path) -> None:
    keep(run, 1, "fedstill", ["b", "a_1"], "10", seed=3)
    keep(run, 1, "all_distill", ["b", "a_1"], "00", seed=3)
    keep(run, 1, "teacher", ["a_0"], "1", seed=3)
    keep(run, 0, "fedstill", ["a_0"], "1")
    rows = gather_clips(run, clients=2)
    assert rows == (
        ClipRow("latency_insensitive", 0, 0, ("a_0",), {"fedstill": "1"}, ("a.wav",), ("ann",)),
        ClipRow(
            "latency_insensitive",
            1,
            3,
            ("b", "a_1"),
            {"all_distill": "00", "fedstill": "10"},
            ("b", "a.wav"),
            ("bob", "ann"),
        ),
    )
    assert set(asdict(rows[0])) == {"scenario", "client", "seed", "clip_ids", "correct", "groups", "speakers"}


def test_a_run_whose_devices_kept_nothing_has_no_clips(tmp_path: Path) -> None:
    assert gather_clips(tmp_path, clients=2) == ()


def test_arms_that_were_tested_on_other_clips_are_not_put_beside_each_other(run: Path) -> None:
    keep(run, 0, "fedstill", ["a_0", "b"], "11")
    keep(run, 0, "all_distill", ["a_0", "a_1"], "11")
    with pytest.raises(ResultsError, match="has other clips than another arm: run the experiment again"):
        gather_clips(run, clients=1)


def test_a_clip_that_is_gone_is_named(run: Path) -> None:
    keep(run, 0, "fedstill", ["a_0", "c"], "11")
    with pytest.raises(ResultsError, match="clip c was tested but is gone"):
        gather_clips(run, clients=1)
