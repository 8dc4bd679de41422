"""The robustness study finds what was planted in made-up outcomes, and refuses runs that do not fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.robustness import CELLS, cell, made_set, made_study, write_fold

from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.evaluation.paired_tests import holm
from fedstill.evaluation.robustness.aims import aims
from fedstill.evaluation.robustness.costs import cost_lines, summary_bytes
from fedstill.evaluation.robustness.estimates import chosen_lines, estimate_errors, estimated
from fedstill.evaluation.robustness.page import left_out, robustness_page, write_page
from fedstill.evaluation.robustness.people import folds_sheet, speakers_sheet
from fedstill.evaluation.robustness.pooling import difference, entries_of, pooled
from fedstill.evaluation.robustness.questions import contract, not_worse, planned
from fedstill.evaluation.robustness.reading import read_set
from fedstill.evaluation.robustness.records import read_study, write_study

GAIN = {
    "fedstill": {"A": 0.2, "B": 0.2},
    "prior_corrected": {"B": 0.05},
    "teacher_own_statistics": {"A": 0.1, "B": 0.1},
}
HARM = {"fedstill": {"A": 0.2, "D": -0.15}}


@pytest.fixture(scope="module")
def gained(tmp_path_factory):
    return made_study(made_set(tmp_path_factory.mktemp("gained"), GAIN))


@pytest.fixture(scope="module")
def harmed(tmp_path_factory):
    return made_study(made_set(tmp_path_factory.mktemp("harmed"), HARM))


def test_a_planted_gain_is_found_where_it_was_planted(gained):
    by_scenario = {line.scenario: line.figure for line in contract(gained).scenarios}

    for scenario in ("A", "B"):
        assert by_scenario[scenario].low < 20 < by_scenario[scenario].high + 3
        assert by_scenario[scenario].low > 10
        assert by_scenario[scenario].p < 0.001
    for scenario in ("D", "G"):
        assert (by_scenario[scenario].points, by_scenario[scenario].p) == (0.0, 1.0)
    assert contract(gained).kept


def test_a_planted_harm_breaks_the_contract_and_names_its_cell(harmed):
    found = contract(harmed)

    assert not found.kept
    assert {line.scenario for line in found.scenarios if not line.kept} == {"D"}
    assert [line.key.scenario for line in found.harmed] == ["D"]


def test_the_p_values_of_cells_are_adjusted_for_all_cells(harmed):
    lines = contract(harmed).cells

    assert len(lines) == len(CELLS)
    assert [line.holm for line in lines] == list(holm([line.figure.p for line in lines]))
    assert any(line.holm > line.figure.p for line in lines)


def test_the_same_clips_in_many_cells_are_the_same_recordings(tmp_path):
    gains = {"fedstill": {"A": 0.2}}
    few = made_study(made_set(tmp_path / "few", gains, cells=(cell("A", "babble", 2),)))
    severities = tuple(cell("A", f"babble{number}", 2) for number in range(8))
    many = made_study(made_set(tmp_path / "many", gains, cells=severities))

    one, eight = (difference(entries_of(study), "fedstill", GENERIC) for study in (few, many))

    assert (one.recordings, eight.recordings) == (240, 240)
    assert eight.devices == 8 * one.devices
    assert eight.high - eight.low > 0.9 * (one.high - one.low)  # eight times the clips, no more certainty


def test_two_clips_of_a_recording_count_as_one(tmp_path):
    gains = {"fedstill": {"A": 0.2}}
    single, double = (made_study(made_set(tmp_path / str(copies), gains, copies=copies)) for copies in (1, 2))

    once, twice = (difference(entries_of(study), "fedstill", GENERIC) for study in (single, double))

    assert (once.points, once.p) == (twice.points, twice.p)
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high), abs=0.5)


def test_few_speakers_are_not_the_unit(tmp_path):
    data = made_set(tmp_path, {"fedstill": {"A": 0.2}}, speakers=3)
    study = made_study(data)

    assert data.unit == "recording"
    assert pooled(entries_of(study), "fedstill", GENERIC).speaker_count == 120
    assert made_study(made_set(tmp_path / "more", {}, speakers=6)).sets[0].unit == "speaker"


def test_speakers_of_two_sets_are_different_people(tmp_path, gained):
    other = made_set(tmp_path, {"fedstill": {"A": 0.2}}, name="other")
    both = made_study(gained.sets[0], other)

    assert pooled(entries_of(both), "fedstill", GENERIC).speaker_count == 24
    assert {line.experiment for line in contract(both).by_set} == {"made_up", "other"}


def test_the_planned_comparisons_are_adjusted_for_all_four(gained):
    found = planned(gained)

    assert [one.baseline for one in found] == [GENERIC, "other_card", "teacher_own_statistics", GENERIC]
    assert found[1].figure is None
    assert found[1].holm is None
    p_values = [1.0 if one.p is None else one.p for one in found]
    assert [one.holm for one in found] == [
        None if one.p is None else p for one, p in zip(found, holm(p_values), strict=True)
    ]
    assert found[0].holm == pytest.approx(4 * 2 / 2**12)  # all 12 speakers gain, and four questions are asked
    assert found[2].holm < 0.05
    assert found[2].figure.points == pytest.approx(10, abs=4)


def test_no_harm_is_only_shown_by_outcomes_on_the_good_side_of_the_margin(tmp_path, gained, harmed):
    d = [entry for entry in entries_of(harmed) if entry.device.scenario == "D"]
    a = [entry for entry in entries_of(harmed) if entry.device.scenario == "A"]

    assert not_worse(d, "fedstill", GENERIC) == 1.0
    assert not_worse(a, "fedstill", GENERIC) < 0.01
    assert planned(harmed)[3].p == 1.0
    assert planned(gained)[3].p == pytest.approx(
        2 / 2**12
    )  # no clip differs, so all 12 speakers do by the margin


def test_aims_say_met_missed_or_not_measured(gained, harmed):
    verdicts = {one.aim: one for one in aims(gained, contract(gained), planned(gained))}
    worse = {one.aim: one for one in aims(harmed, contract(harmed), planned(harmed))}

    def of(found, start):
        return next(one.verdict for aim, one in found.items() if aim.startswith(start))

    assert of(verdicts, "every scenario, pooled") == "met"
    assert of(verdicts, "A at the middle severity: 6 points over all_distill") == "met"
    assert of(verdicts, "A at the middle severity: 3 points over other_card") == "not measured"
    assert of(verdicts, "B: 2 points") == "met"
    assert of(verdicts, "G: 2 points") == "missed"
    assert of(verdicts, "upload") == "met"
    assert of(verdicts, "at 1/8") == "missed"  # the made-up teacher is 3.7 times as large
    assert of(worse, "every scenario, pooled") == "missed"
    assert of(worse, "no cell is significantly below 0") == "missed"
    assert of(worse, "B: 2 points") == "not measured"


def test_errors_of_estimates_are_those_that_were_planted(tmp_path, gained):
    errors = estimate_errors(estimated(gained))
    wrong = made_study(made_set(tmp_path, {"fedstill": {}}, estimated=-0.08))
    few = made_study(made_set(tmp_path / "few", {"fedstill": {}}, recordings=8))

    assert (errors.bias, errors.error, errors.covered) == (pytest.approx(2), pytest.approx(2), 1.0)
    assert errors.many == errors.devices == 2 * len(CELLS)
    assert estimate_errors(estimated(wrong)).bias == pytest.approx(-8)
    assert estimate_errors(estimated(wrong)).covered == 0.0
    assert estimate_errors(estimated(few)).error is None


def test_the_choice_table_has_the_expected_and_the_real_gain(gained):
    rendered, generic = chosen_lines(gained)

    assert (rendered.name, rendered.devices, rendered.expected) == ("rendered", 6, pytest.approx(5))
    assert rendered.real.points == pytest.approx(20, abs=4)
    assert (generic.name, generic.devices, generic.real.points) == ("generic", 4, 0.0)


def test_upload_is_what_goes_beyond_the_evaluation(gained):
    lines = {line.arm: line for line in cost_lines(gained)}
    entry = entries_of(gained)[0]

    assert lines["fedstill"].up_bytes == 400
    assert lines["fedstill"].points_per_kilobyte == pytest.approx(1000 * lines["fedstill"].gain.points / 400)
    assert lines["prior_corrected"].points_per_kilobyte is None
    assert summary_bytes(entry, "fedstill") == 400
    assert summary_bytes(entry, "prior_corrected") is None


def test_counts_survive_the_file_and_the_page_needs_nothing_else(tmp_path, gained):
    write_study(tmp_path, gained)

    again = read_study(tmp_path)

    assert again == gained
    assert robustness_page(again, "x") == robustness_page(gained, "x")


def test_the_page_comes_with_counts_and_pictures(tmp_path, gained):
    write_page(gained, tmp_path / "robustness.md")

    text = (tmp_path / "robustness.md").read_text()
    files = {path.name for path in (tmp_path / "robustness").iterdir()}
    assert files == {"results.json", "severity_made_up.png", "estimated_accuracy.png"}
    assert all(f"(robustness/{name})" in text for name in files if name.endswith("png"))
    for part in ("made-up processor", "revision 0123abc", "Single cells", "By speaker", "points per kB"):
        assert part in text
    assert "What was left out" in text


def test_every_fold_is_shown_with_its_speakers(gained):
    rows = {row[1]: row for row in folds_sheet(gained).rows}

    assert [row[2] for row in rows.values()] == ["speaker0-0 to speaker0-5", "speaker1-0 to speaker1-5"]
    assert rows["0"][5] == rows["1"][5] == "+0.0 [+0.0, +0.0]"
    assert all(float(row[3].split()[0]) > 10 for row in rows.values())


def test_every_speaker_is_shown_with_outcomes_of_one_recording_each(gained):
    rows = speakers_sheet(gained).rows

    assert len(rows) == 12
    assert {row[2] for row in rows} == {"50.0"}
    mean = sum(float(row[4]) for row in rows) / len(rows)
    both = difference(entries_of(gained, lambda entry: entry.device.severity > 0), "fedstill", GENERIC)
    assert mean == pytest.approx(both.points, abs=0.05)


def test_what_was_left_out_is_named(tmp_path, gained):
    fold = write_fold(tmp_path / "0", {"fedstill": {}}, folds=4)
    lines = list(left_out(made_study(read_set([fold]))))

    assert "made_up: folds 1, 2, 3 of 4" in lines
    assert any(line.startswith("arms that were not run at all: ") and "TENT" in line for line in lines)


def test_cells_with_fewer_seeds_are_named(tmp_path):
    cells = (cell("A", "babble", 2), cell("D"))
    data = made_set(tmp_path, {"fedstill": {}}, seeds=(0, 1, 2), cells=cells)
    lean = tuple(one for one in data.devices if one.scenario == "A" or one.seed == 0)

    assert "made_up: 1 cells of D with 1 of 3 seeds" in list(
        left_out(made_study(replace(data, devices=lean)))
    )
