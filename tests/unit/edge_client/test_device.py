"""Which clips of a device describe it, and which ones count: no recording does both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store
from fedstill.edge_client.folder import DATA_FOLDER
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, write_policy
from fedstill.protos.messages import Job

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, None, None]
RECORDINGS = ["a", "a", "b", "b", "c", "c", "d", "d", "a", "b"]


class TinySource:
    """Clips of one value each; the last two have no label and are of the recordings a and b."""

    name, class_names = "tiny", ("calm", "angry")
    index = tuple(
        ClipInfo(f"clip{number}", "private", "ann", label, group)
        for number, (label, group) in enumerate(zip(LABELS, RECORDINGS, strict=True))
    )

    def load(self, position: int) -> Clip:
        frames = np.full((1, 8, 8, 3), position, np.uint8)
        return Clip(self.index[position], np.full((3, 5), position, np.float32), frames, 0)


@pytest.mark.parametrize("seed", range(8))
def test_no_recording_is_both_asked_and_tested(tmp_path: Path, seed: int) -> None:
    spec = AudioSpec(), FrameSpec(size=8, count=1, channels=1)
    build_store(TinySource(), range(len(LABELS)), *spec, tmp_path / DATA_FOLDER)

    def never(*_: object) -> None:
        raise AssertionError("no student is needed to choose clips")

    device = Device(tmp_path, never)  # type: ignore[arg-type]
    query, test = device.roles(Job("latency_sensitive", "all_distill", seed, 0))
    asked, tested = ({RECORDINGS[position] for position in part} for part in (query, test))
    assert not asked & tested
    assert asked | tested == set("abcd")
    assert len(query) == 5  # two recordings of two clips, and the unlabelled clip of one of them
    assert len(test) == 4


@pytest.mark.parametrize("scenario", ["latency_sensitive", "latency_insensitive"])
def test_the_owner_limits_how_many_clips_are_summarised_but_not_which_are_tested(
    tmp_path: Path, scenario: str
) -> None:
    spec = AudioSpec(), FrameSpec(size=8, count=1, channels=1)
    build_store(TinySource(), range(len(LABELS)), *spec, tmp_path / DATA_FOLDER)
    device = Device(tmp_path, None)  # type: ignore[arg-type]

    def roles(clips: int | None, arm: str = "fedstill") -> tuple[list[int], list[int]]:
        write_policy(tmp_path, PrivacyPolicy(clips=clips))
        query, test = device.roles(Job(scenario, arm, 3, 0))
        return query.tolist(), test.tolist()

    every, tested = roles(None)
    shown: set[int] = set()
    for limit in range(1, len(every) + 2):
        query, test = roles(limit)
        assert test == tested
        assert len(query) == min(limit, len(every))
        assert shown < set(query) or query == every  # always the same ones first
        assert query == sorted(query) == roles(limit, "prior_corrected")[0]
        shown = set(query)


def test_a_limit_of_no_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="clips: 0 is below 1"):
        PrivacyPolicy(clips=0)
