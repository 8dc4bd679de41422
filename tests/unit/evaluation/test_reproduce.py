"""The thesis' fractions give back its printed percentages, and `reproduce` sets ours beside them honestly."""

from __future__ import annotations

import dataclasses
import re
from itertools import combinations

import pytest
from helpers.results import made_run
from rich.console import Console
from scipy.stats import fisher_exact

from fedstill.cloud_server.distillation.arm_names import SCENARIOS, THESIS_ARMS
from fedstill.evaluation import thesis
from fedstill.evaluation.federated.reproduce import TARGETS, reproduce
from fedstill.evaluation.results import ResultsError, SelectionRow
from fedstill.evaluation.statistics import compare, pooled_accuracy, wilson
from fedstill.evaluation.summary import narrow

PRINTED_ACCURACY = {  # Tables 5.2 and 5.4, rows AllDistill, +random, +select, +select+cluster
    "CREMA-D": (
        ("66.31", "55.59", "69.84", "57.30"),
        ("63.13", "59.13", "68.25", "62.70"),
        ("68.70", "61.31", "71.96", "63.78"),
        ("67.90", "61.04", "72.49", "61.62"),
    ),
    "AVE": (
        ("56.05", "55.87", "54.78", "56.04"),
        ("60.99", "61.45", "58.26", "60.44"),
        ("61.88", "62.01", "60.87", "58.24"),
        ("61.88", "63.69", "62.61", "64.84"),
    ),
}
PRINTED_COMPRESSION = {  # Table 5.3, rows 1, 1.5, 2, 3
    "CREMA-D": (("72.49", "61.62"), ("69.31", "62.16"), ("68.78", "63.24"), ("71.96", "60")),
    "AVE": (("60", "59.34"), ("53.91", "65.93"), ("58.26", "53.85"), ("56.52", "61.54")),
}
CELLS = tuple((scenario, client) for scenario in SCENARIOS for client in (0, 1))


def text_of(renderable, width=160):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def percent(cell):
    return f"{100 * cell[0] / cell[1]:.2f}".removesuffix(".00")


@pytest.fixture(scope="module")
def run():
    return made_run()


@pytest.mark.parametrize("dataset", PRINTED_ACCURACY)
def test_accuracy_fractions_are_the_printed_percentages(dataset):
    for arm, printed in zip(THESIS_ARMS, PRINTED_ACCURACY[dataset], strict=True):
        for (scenario, client), text in zip(CELLS, printed, strict=True):
            assert percent(thesis.accuracy(dataset, scenario, client, arm)) == text


@pytest.mark.parametrize("dataset", PRINTED_COMPRESSION)
def test_compression_fractions_are_the_printed_percentages(dataset):
    for rate, printed in zip(thesis.RATES, PRINTED_COMPRESSION[dataset], strict=True):
        assert tuple(percent(thesis.compression(dataset, client, rate)) for client in (0, 1)) == printed


def test_denominators_are_those_of_the_splits():
    totals = {key: counts.total for key, counts in thesis.ACCURACY["CREMA-D"].items()}
    assert sum(totals[cell] for cell in CELLS[:2]) == 744
    assert sum(thesis.ACCURACY["AVE"][cell].total for cell in CELLS[:2]) == 402


def test_no_arm_difference_of_the_thesis_reaches_significance():
    p = [
        fisher_exact([[a, counts.total - a], [b, counts.total - b]]).pvalue
        for table in thesis.ACCURACY.values()
        for counts in table.values()
        for a, b in combinations(counts.correct, 2)
    ]
    assert len(p) == 48
    assert min(p) == pytest.approx(0.1243, abs=1e-4)


def test_what_the_thesis_does_not_have_is_none():
    assert thesis.accuracy("CREMA-D", "latency_sensitive", 2, "all_distill") is None
    assert thesis.accuracy("CREMA-D", "latency_sensitive", 0, "fedstill") is None
    assert thesis.compression("AVE", 0, 4.0) is None


def test_table_shows_both_sides_with_intervals_and_paired_differences(run):
    results, clips = run
    text = text_of(reproduce("table5.2", results, clips))

    low, high = wilson(259, 377)
    assert f"68.7% [{100 * low:.1f},{100 * high:.1f}]" in text
    for scenario, client in CELLS:
        for arm in THESIS_ARMS:
            rows = [r for r in results.rows if (r.scenario, r.client, r.arm) == (scenario, client, arm)]
            assert f"{100 * pooled_accuracy(rows).fraction:.1f}% [" in text
            if arm != "all_distill":
                outcome = compare(clips, arm, "all_distill", scenario=scenario, client=client)
                assert narrow(str(outcome)) in text
    assert "n.s." in text


def test_too_few_speakers_are_named_once_under_the_table():
    text = text_of(reproduce("table5.2", *made_run(speakers=5)))
    assert text.count("Ours, n.s.: 5 speakers cannot show it.") == 1
    assert text.count("5 speakers") == 1
    assert "tested by speaker" in text
    assert "cannot show" not in text_of(reproduce("table5.2", *made_run(speakers=6)))


@pytest.mark.parametrize(
    ("target", "dataset", "said"),
    [
        ("table5.2", "emotion_pairs", "Ours: emotion_pairs, not CREMA-D."),
        ("table5.4", "emotion_pairs", "Ours: emotion_pairs, not AVE."),
        ("table5.4", "cremad", "Ours: cremad, not AVE."),
        ("table5.2", "cremad", None),
        ("table5.2", "CREMA-D", None),
        ("table5.4", "ave", None),
        ("table5.3", "ave", None),
        ("fig5.12", "ave", "Ours: ave, not CREMA-D."),
    ],
)
def test_another_data_set_is_said_plainly(target, dataset, said):
    results, clips = made_run(dataset=dataset)
    text = text_of(reproduce(target, results, clips))
    if said is None:
        assert "not CREMA-D" not in text
        assert "not AVE" not in text
    else:
        assert said in text


def test_synthetic_clean_runs_of_other_sizes_are_said_plainly():
    results, clips = made_run(dataset="cremad", synthetic=True, clients=3, seeds=(0,))
    text = text_of(reproduce("table5.2", results, clips))
    assert "Ours: synthetic data (cremad), not CREMA-D." in text
    assert "Ours: clean mode" in text
    assert "Ours: 3 clients" in text
    assert "seeds: 1, the clips alone decide" in text
    faithful = dataclasses.replace(results, mode="faithful")
    assert "Ours: clean mode" not in text_of(reproduce("table5.2", faithful, clips))


def test_arms_that_did_not_run_are_said_plainly():
    results, clips = made_run(arms=("all_distill", "all_distill_select"), scenarios=("latency_sensitive",))
    lines = text_of(reproduce("table5.2", results, clips)).splitlines()
    # two clients: all four arms of one scenario, two arms of the other
    assert sum("not run" in line for line in lines) == 2 * 4 + 2 * 2


def test_compression_table_follows_the_data_set():
    for dataset, thesis_cell, replicate in (("emotion_pairs", "72.5%", False), ("AVE", "60.0%", True)):
        results, clips = made_run(dataset=dataset)
        text = text_of(reproduce("table5.3", results, clips))
        first = next(line for line in text.splitlines() if "1 fp32" in line and "vs" not in line)
        assert thesis_cell in first
        assert "4096" in first
        assert ("72/115" in text) is replicate
        rows = [
            row
            for row in results.sweeps
            if (row.sweep, row.value, row.precision, row.client) == ("compression", 3.0, "int8", 1)
        ]
        last = [line for line in text.splitlines() if "3 int8" in line][-1]
        assert "348" in last
        assert f"{100 * pooled_accuracy(rows).fraction:.1f}%" in last


def test_own_class_share_is_counted():
    results, clips = made_run()
    rows = (SelectionRow("latency_sensitive", "fedstill", 1, 0, 0, (1, 1, 1, 2, 2, 2)),)
    text = text_of(reproduce("fig5.10", dataclasses.replace(results, selection=rows), clips))
    assert "66.7 %" in next(line for line in text.splitlines() if "fedstill" in line)


def test_sweep_is_compared_with_its_smallest_value():
    results, clips = made_run()
    rows = tuple(
        dataclasses.replace(row, correct=10 if row.value == 3 else 20 + row.seed)
        for row in results.sweeps
        if row.sweep == "cluster_samples"
    )
    lines = text_of(reproduce("fig5.12", dataclasses.replace(results, sweeps=rows), clips)).splitlines()
    gain = next(line for line in lines if re.match(r"\s+12 ", line))
    assert "+36.7, p = 0.003" in gain  # 10, 11, 12 clips of 30 more in three seeds


@pytest.mark.parametrize("target", [name for name in TARGETS if name.startswith("fig")])
def test_figures_are_saved_beside_the_words_of_the_thesis(run, tmp_path, target):
    text = text_of(reproduce(target, *run, figures=tmp_path / "figures"), width=1000)
    assert "Thesis, in words" in text
    assert thesis.OBSERVATIONS[target][:40] in text
    assert f"{target}.png" in text
    assert (tmp_path / "figures" / f"{target}.png").read_bytes().startswith(b"\x89PNG")
    reproduce(target, *run)  # without a folder nothing is written


@pytest.mark.parametrize(
    ("target", "setting"),
    [
        ("table5.2", 'run.arms=["all_distill", '),
        ("table5.3", 'run.sweeps=["compression"]'),
        ("table5.4", 'run.arms=["all_distill", '),
        ("fig5.6", 'run.arms=["all_distill_random", '),
        ("fig5.10", 'run.arms=["all_distill_random", '),
        ("fig5.12", 'run.sweeps=["cluster_samples"]'),
        ("fig5.13", 'run.sweeps=["uploaded_samples"]'),
    ],
)
def test_missing_data_names_the_setting_in_one_line(run, target, setting):
    bare = dataclasses.replace(run[0], rows=(), losses=(), selection=(), sweeps=())
    with pytest.raises(ResultsError, match=re.escape(f"--set '{setting}")) as caught:
        reproduce(target, bare, run[1])
    assert "\n" not in str(caught.value)


def test_unknown_target_lists_the_known_ones(run):
    with pytest.raises(ResultsError, match=r"unknown target 'table9'") as caught:
        reproduce("table9", *run)
    assert all(target in str(caught.value) for target in TARGETS)
    assert set(TARGETS) == {"table5.2", "table5.3", "table5.4", "fig5.6", "fig5.10", "fig5.12", "fig5.13"}
