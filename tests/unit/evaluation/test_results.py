"""A run directory survives the round trip, and a damaged one is refused with a line that says what to do."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.results import made_run

from fedstill.evaluation.results import (
    CLIPS_FILE,
    RESULTS_FILE,
    AccuracyRow,
    ClipRow,
    LossRow,
    ResultsError,
    check_agreement,
    read_clips,
    read_results,
    write_clips,
    write_results,
)


def test_run_is_read_back_as_it_was_written(tmp_path):
    results, clips = made_run()
    write_results(tmp_path / "run", results)
    write_clips(tmp_path / "run", clips)

    assert read_results(tmp_path / "run") == results
    assert read_clips(tmp_path / "run") == clips


def test_partial_run_of_many_clients_is_read_back(tmp_path):
    results, _ = made_run(arms=("oracle_classes", "all_distill"), scenarios=("latency_sensitive",), clients=5)
    write_results(tmp_path, results)

    again = read_results(tmp_path)

    assert again == results
    assert again.arms() == ("all_distill", "oracle_classes")
    assert again.scenarios() == ("latency_sensitive",)


def test_nothing_but_the_two_files_is_left_behind(tmp_path):
    results, clips = made_run()
    for _ in range(2):
        write_results(tmp_path, results)
        write_clips(tmp_path, clips)

    assert sorted(path.name for path in tmp_path.iterdir()) == [CLIPS_FILE, RESULTS_FILE]


def test_failed_write_leaves_the_old_file(tmp_path):
    results, _ = made_run()
    write_results(tmp_path, results)

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path, dataclasses.replace(results, peak_memory_mb=math.nan))

    assert read_results(tmp_path) == results
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS_FILE]


def test_write_that_cannot_be_finished_leaves_no_part_behind(tmp_path):
    results, _ = made_run()
    (tmp_path / RESULTS_FILE).mkdir()

    with pytest.raises(OSError, match="directory"):
        write_results(tmp_path, results)

    assert [path.name for path in tmp_path.iterdir()] == [RESULTS_FILE]


def test_diverged_loss_is_kept_as_none(tmp_path):
    results, _ = made_run()
    rows = tuple(
        LossRow("latency_sensitive", "fedstill", 0, 0, epoch, loss)
        for epoch, loss in enumerate((0.5, math.nan, math.inf))
    )
    write_results(tmp_path, dataclasses.replace(results, losses=rows))

    assert [row.loss for row in read_results(tmp_path).losses] == [0.5, None, None]


def test_numpy_numbers_and_paths_are_written_as_plain_values(tmp_path):
    results, _ = made_run()
    row = AccuracyRow("latency_sensitive", "fedstill", 0, 0, np.int64(3), np.int64(4))
    config = {"rate": np.float32(0.5), "root": tmp_path}
    write_results(tmp_path, dataclasses.replace(results, rows=(row,), config=config))

    again = read_results(tmp_path)

    assert again.rows[0].correct == 3
    assert again.config == {"rate": 0.5, "root": str(tmp_path)}


@pytest.mark.parametrize("name", [RESULTS_FILE, CLIPS_FILE])
def test_missing_run_says_what_to_do(tmp_path, name):
    read = read_results if name == RESULTS_FILE else read_clips

    with pytest.raises(ResultsError, match=f"no {name} in .*nowhere.*fedstill simulate") as caught:
        read(tmp_path / "nowhere")

    assert "\n" not in str(caught.value)


def _without_rows(document):
    del document["rows"]


def _wrong_count(document):
    document["rows"][3]["correct"] = "12"


def _more_right_than_there_are(document):
    document["rows"][0]["correct"] = 1000


def _strange_arm(document):
    document["rows"][0]["arm"] = "all_distil"


def _newer_format(document):
    document["format"] = 2


def _strange_field(document):
    document["colour"] = "blue"


def _class_missing(document):
    document["selection"][0]["class_counts"].pop()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_rows, "rows: missing"),
        (_wrong_count, r"rows\[3\].correct: needs int, got '12'"),
        (_more_right_than_there_are, r"rows\[0\]: 1000 correct of 60"),
        (_strange_arm, r"rows\[0\]: unknown arm 'all_distil'"),
        (_newer_format, "format 2, this fedstill reads 1"),
        (_strange_field, "colour: unknown key"),
        (_class_missing, "5 counts for 6 classes"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, damage, said):
    results, _ = made_run()
    path = write_results(tmp_path, results)
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))

    with pytest.raises(ResultsError, match=f"{said}.*run the experiment again") as caught:
        read_results(tmp_path)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2", '{"a": ', "[]", "null", "\x00"])
def test_file_that_is_no_run_is_refused(tmp_path, text):
    (tmp_path / RESULTS_FILE).write_text(text)

    with pytest.raises(ResultsError, match="run the experiment again"):
        read_results(tmp_path)


def test_half_a_file_is_refused(tmp_path):
    _, clips = made_run()
    path = write_clips(tmp_path, clips)
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(ResultsError, match=f"{CLIPS_FILE} is damaged"):
        read_clips(tmp_path)


@pytest.mark.parametrize("bits", ["010", "01021", "01 01", ""])
def test_clip_row_needs_one_digit_per_clip(bits):
    with pytest.raises(ResultsError, match="needs 5 digits"):
        ClipRow("latency_sensitive", 0, 0, ("a", "b", "c", "d", "e"), {"fedstill": bits})


@pytest.mark.parametrize("name", ["groups", "speakers"])
def test_clip_row_needs_one_recording_and_speaker_per_clip(name):
    with pytest.raises(ResultsError, match=f"{name} needs one per clip, 2, found 1"):
        ClipRow("latency_sensitive", 0, 0, ("a", "b"), {}, **{name: ("one",)})


def test_recordings_and_speakers_are_read_back(tmp_path):
    _, clips = made_run(speakers=7)
    write_clips(tmp_path, clips)
    assert read_clips(tmp_path) == clips
    assert set(clips[0].speakers) == {f"speaker{number}" for number in range(7)}


def test_file_from_before_there_were_recordings_is_read(tmp_path):
    """As fedstill wrote it when a row had no groups and no speakers."""
    older = '{"scenario": "latency_sensitive", "client": 1, "seed": 2, "clip_ids": ["a"], "correct": {"fedstill": "1"}}'
    (tmp_path / CLIPS_FILE).write_text(f"[{older}]")
    assert read_clips(tmp_path) == (ClipRow("latency_sensitive", 1, 2, ("a",), {"fedstill": "1"}),)


@pytest.mark.parametrize(("correct", "total"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused_when_made(correct, total):
    with pytest.raises(ResultsError, match="cannot be"):
        AccuracyRow("latency_sensitive", "fedstill", 0, 0, correct, total)


def test_unknown_names_are_refused_when_made():
    with pytest.raises(ResultsError, match="unknown scenario 'slow'"):
        AccuracyRow("slow", "fedstill", 0, 0, 1, 2)
    with pytest.raises(ResultsError, match="unknown arm 'x'"):
        ClipRow("latency_sensitive", 0, 0, ("a",), {"x": "1"})


def test_two_runs_mixed_in_one_folder_are_noticed():
    results, clips = made_run()
    check_agreement(results, clips)

    first = results.rows[0]
    wrong = dataclasses.replace(first, correct=first.correct - 1)
    with pytest.raises(ResultsError, match=f"{first.arm}, client 0, seed 0: two runs are mixed"):
        check_agreement(dataclasses.replace(results, rows=(wrong, *results.rows[1:])), clips)


def test_a_file_from_before_devices_had_a_choice_opens_without_one(tmp_path):
    results, _ = made_run()
    path = write_results(tmp_path, results)
    document = json.loads(path.read_text())
    del document["choices"]
    path.write_text(json.dumps(document))

    assert read_results(tmp_path).choices == ()
