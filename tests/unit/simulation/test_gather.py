"""From devices' folders to clips.json: the arms beside each other, each clip with its recording and speaker."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import prepared_run

from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import PrivacyGuarantee, open_journal
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store
from fedstill.evaluation.results import Candidate, ChoiceRow, ClipRow, ResultsError, ShareRow
from fedstill.protos.messages import PrototypeUpload
from fedstill.simulation.gather import gather_clips, gather_rows


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


def test_published_methods_stand_beside_the_arms(run: Path) -> None:
    keep(run, 0, "fedstill", ["a_0", "b"], "11")
    keep(run, 0, "tent", ["a_0", "b"], "00")  # a device evaluates no such arm
    folder = run / "devices" / "0"
    outcome = {"scenario": "latency_insensitive", "seed": 0, "clip_ids": ["a_0", "b"], "correct": "10"}
    (folder / "references").mkdir()
    for arm in ("tent", "teacher", "all_distill"):  # the last one is no published method
        (folder / "references" / f"{arm}.json").write_text(json.dumps({**outcome, "arm": arm}))

    (row,) = gather_clips(run, clients=1)

    assert row.correct == {"fedstill": "11", "tent": "10", "teacher": "10"}


def test_which_candidate_a_device_got_is_gathered(tmp_path: Path) -> None:
    run_dir = prepared_run(tmp_path)
    choice = {"chosen": "rendered", "reason": "it is better", "estimate": 0.6, "low": 0.5, "high": 0.7}
    choice["candidates"] = [{"name": "rendered", "gain": 0.04, "error": 0.01}]
    key = JobKey("latency_sensitive", "fedstill", 1, 0)
    record = {**asdict(key), "evaluations": [], "traffic": [], "selection": [], "losses": []}
    journal = open_journal(run_dir, read_plan(run_dir).journal)
    journal.finish_job(key, {**record, "choice": choice})
    journal.close()

    assert gather_rows(run_dir)["choices"] == (
        ChoiceRow(
            "latency_sensitive", "fedstill", 1, 0, "rendered", "it is better", 0.6, 0.5, 0.7,
            candidates=(Candidate("rendered", 0.04, 0.01),),
        ),
    )  # fmt: skip


def test_prototypes_that_shared_clips_are_gathered(tmp_path: Path) -> None:
    run_dir = prepared_run(tmp_path)
    journal = open_journal(run_dir, read_plan(run_dir).journal)
    for client, count in ((0, 3), (1, 4)):
        key = JobKey("latency_sensitive", "all_distill_select", client, 0)
        for outer, rows in enumerate((count, count - 1)):
            upload = PrototypeUpload(
                key.at(outer), np.full((rows, 2), 0.5, np.float32), np.ones(rows, np.int64), ("a", "b")
            )
            journal.accept_upload(key, outer, upload, PrivacyGuarantee("samples"))
        selection = [{"round": outer, "class_counts": [1, 2]} for outer in (0, 1)]
        record = {**asdict(key), "evaluations": [], "traffic": [], "selection": selection, "losses": []}
        journal.finish_job(key, record)
    journal.close()

    assert gather_rows(run_dir)["shares"] == (
        ShareRow("latency_sensitive", "all_distill_select", 1, 0, 4, 3),
    )
