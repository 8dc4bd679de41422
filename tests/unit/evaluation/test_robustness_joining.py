"""Studies of other seeds, joined from their counts, say what one study of all runs would have said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.robustness import CELLS, made_set, made_study, write_fold

from fedstill.evaluation.results import ResultsError
from fedstill.evaluation.robustness.joining import joined
from fedstill.evaluation.robustness.pooling import cells_of, difference, entries_of
from fedstill.evaluation.robustness.reading import read_set
from fedstill.evaluation.robustness.records import read_study, write_study

GENERIC = "all_distill_equal_steps"
GAINS = {"fedstill": {"A": 0.3, "B": -0.2}}


def test_it_is_as_if_all_had_been_run_at_once(tmp_path):
    runs = [write_fold(tmp_path / f"seed{seed}", GAINS, seeds=(seed,)) for seed in (0, 1)]
    together, one, other = (made_study(read_set(chosen)) for chosen in (runs, runs[:1], runs[1:]))

    both = joined(one, other)

    assert both.sets == together.sets


def test_fewer_cells_with_numbers_of_their_own_find_their_cells(tmp_path):
    one = made_study(read_set([write_fold(tmp_path / "a", GAINS)]))
    few = made_study(read_set([write_fold(tmp_path / "b", GAINS, seeds=(1,), cells=CELLS[2:3])]))

    cells = cells_of(entries_of(joined(one, few)))

    assert [len(entries) for entries in cells.values()] == [1, 1, 2, 1, 1]
    (pair,) = (entries for key, entries in cells.items() if key.scenario == "B")
    mean = difference(pair, "fedstill", GENERIC).points
    alone = [difference([entry], "fedstill", GENERIC).points for entry in pair]
    assert mean == pytest.approx(sum(alone) / 2)
    assert {entry.device.seed for entry in pair} == {0, 1}


def test_recordings_of_another_fold_keep_their_speakers(tmp_path):
    parts = [made_study(read_set([write_fold(tmp_path / str(fold), GAINS, fold=fold)])) for fold in (1, 0)]
    whole = joined(*parts).sets[0]

    for device in whole.devices:
        speakers = {whole.recordings[place][0] for place in whole.tests[device.test].recordings}
        assert {speaker.partition("-")[0] for speaker in speakers} == {f"speaker{device.fold}"}


def test_the_joined_study_can_be_kept_and_joined_again(tmp_path):
    parts = [
        made_study(read_set([write_fold(tmp_path / f"seed{seed}", GAINS, seeds=(seed,))]))
        for seed in range(3)
    ]
    write_study(tmp_path / "kept", joined(parts[0], parts[1]))

    whole = joined(read_study(tmp_path / "kept"), parts[2])

    assert whole.sets[0].seeds == (0, 1, 2)


def test_a_device_and_seed_of_both_is_refused(tmp_path):
    one = made_study(made_set(tmp_path, GAINS))

    with pytest.raises(
        ResultsError, match=r"fold 0, A, reverberation\+side_light, severity 1, seed 0 is in both"
    ):
        joined(one, one)


@pytest.mark.parametrize(
    ("name", "value"), [("class_names", ("x",)), ("parameters", {"student": 1}), ("middle", 1)]
)
def test_other_data_is_refused(tmp_path, name, value):
    one = read_set([write_fold(tmp_path / "a", GAINS)])
    other = replace(read_set([write_fold(tmp_path / "b", GAINS, seeds=(1,))]), **{name: value})

    with pytest.raises(ResultsError, match=f"made_up: {name} is .* in one study, .* in the other"):
        joined(made_study(one), made_study(other))


def test_other_experiments_are_refused(tmp_path):
    one = made_study(read_set([write_fold(tmp_path / "a", GAINS)]))
    other = made_study(read_set([write_fold(tmp_path / "b", GAINS, name="else")]))

    with pytest.raises(ResultsError, match="one study is of made_up, the other of else"):
        joined(one, other)
