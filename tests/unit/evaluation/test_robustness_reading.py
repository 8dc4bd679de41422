"""Runs become one file of counts, and those that do not fit together are refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.robustness import CELLS, made_set, made_study, write_fold

from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.evaluation.results import ResultsError
from fedstill.evaluation.robustness.pooling import accuracy, cells_of, entries_of
from fedstill.evaluation.robustness.reading import read_set
from fedstill.evaluation.robustness.records import counts_of, digits, read_study


def test_folds_and_seeds_of_a_cell_are_pooled(tmp_path):
    data = made_set(tmp_path, {"fedstill": {}}, seeds=(0, 1))
    cells = cells_of(entries_of(made_study(data)))

    assert len(cells) == len(CELLS)
    assert all(len(entries) == 4 for entries in cells.values())
    assert (data.folds, data.seeds, len(data.devices)) == ((0, 1), (0, 1), 4 * len(CELLS))


def test_devices_with_the_same_recordings_share_their_list(tmp_path):
    data = read_set([write_fold(tmp_path, {"fedstill": {}})])

    assert len(data.tests) == 1
    assert accuracy(entries_of(made_study(data)), "fedstill").points == 50.0


def test_digits_hold_what_one_recording_can_have():
    counts = np.array([0, 2, 35])

    assert counts_of(digits(counts)).tolist() == counts.tolist()
    with pytest.raises(ResultsError, match=r"36 tested clips; 35 can be kept: set robustness\.per_recording"):
        digits(np.array([36]))


def test_a_fold_twice_is_refused(tmp_path):
    folds = [write_fold(tmp_path / name, {"fedstill": {}}) for name in "ab"]

    with pytest.raises(ResultsError, match=r"b: fold 0 with seed 0 is in .*a, too"):
        read_set(folds)


def test_other_seeds_of_a_fold_are_welcome(tmp_path):
    runs = [write_fold(tmp_path / str(seed), {"fedstill": {}}, seeds=(seed,)) for seed in (0, 1)]

    assert read_set(runs).seeds == (0, 1)


def test_another_experiment_is_refused(tmp_path):
    one = write_fold(tmp_path / "a", {"fedstill": {}})
    other = write_fold(tmp_path / "b", {"fedstill": {}}, fold=1, name="other")
    with pytest.raises(ResultsError, match=r"b: is a run of other, .*a of made_up"):
        read_set([one, other])

    changed = write_fold(tmp_path / "c", {"fedstill": {}}, fold=1, folds=3)
    with pytest.raises(ResultsError, match=r"c: robustness\.folds is 3, in .*a it is 2"):
        read_set([one, changed])


def test_what_is_no_robustness_run_is_refused(tmp_path):
    run = write_fold(tmp_path / "a", {"fedstill": {}})
    lines = json.loads((run / "devices.json").read_text())
    (run / "devices.json").write_text(json.dumps(lines[1:]))
    with pytest.raises(ResultsError, match=r"client 0 is not in devices\.json"):
        read_set([run])
    (run / "devices.json").write_text("[{}]")
    with pytest.raises(ResultsError, match="is damaged"):
        read_set([run])
    (run / "devices.json").unlink()
    with pytest.raises(ResultsError, match="this is no run of a robustness experiment"):
        read_set([run])


def test_a_run_without_the_baseline_is_refused(tmp_path):
    run = write_fold(tmp_path, {"fedstill": {}})
    clips = json.loads((run / "clips.json").read_text())
    for row in clips:
        del row["correct"][GENERIC]
    (run / "clips.json").write_text(json.dumps(clips))

    with pytest.raises(ResultsError, match=f"client 0 lacks {GENERIC}"):
        read_set([run])


def test_a_file_of_another_kind_is_no_study(tmp_path):
    with pytest.raises(ResultsError, match="make one with: fedstill robustness-study"):
        read_study(tmp_path)
    (tmp_path / "results.json").write_text('{"format": 1}')
    with pytest.raises(ResultsError, match="is no robustness study"):
        read_study(tmp_path)
