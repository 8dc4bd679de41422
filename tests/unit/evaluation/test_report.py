"""The page stands alone and shows the numbers of markdown and console; plots cover what the run holds."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from helpers.results import made_run
from rich.console import Console

from fedstill.cloud_server.distillation.arm_names import ARMS, DEFAULT_ARMS
from fedstill.evaluation import summary
from fedstill.evaluation.federated import plots, report
from fedstill.evaluation.results import (
    ChoiceRow,
    DecisionRow,
    FailureRow,
    PretrainedRow,
    ResultsError,
    SelectionRow,
    ShareRow,
    read_results,
    write_clips,
    write_results,
)
from fedstill.evaluation.statistics import compare

ALL_PLOTS = {
    "accuracy_by_arm",
    "loss_per_epoch",
    "selected_classes",
    "cluster_samples",
    "uploaded_samples",
    "compression_ladder",
    "traffic",
}


def printed(renderable, width=200):
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def page_of(results, clips, drawn=()):
    return report.html_report(results, clips, drawn).replace("\u00a0", " ")


class Addresses(HTMLParser):
    """Everything that a browser would fetch, and whether the tags close."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run():
    return made_run()


@pytest.fixture(scope="module")
def run_dir(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_results(folder, run[0])
    write_clips(folder, run[1])
    report.write_report(folder)
    return folder


def test_report_is_one_file_that_fetches_nothing(run_dir):
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    parser = Addresses()
    parser.feed(page)
    parser.close()

    assert parser.open == []
    images = [address for address in parser.found if address.startswith("data:image/png;base64,")]
    assert len(images) == len(ALL_PLOTS)
    assert all(address.startswith(("data:", "#")) for address in parser.found)
    assert not re.search(r"https?://|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_every_plot_is_a_png_of_readable_size(run_dir):
    drawn = sorted((run_dir / "plots").iterdir())
    assert {path.stem for path in drawn} == ALL_PLOTS
    for path in drawn:
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
        assert 700 <= width <= 2200
        assert 300 <= height <= 1300


def test_only_what_the_run_holds_is_drawn(tmp_path):
    results, clips = made_run(arms=("all_distill",), scenarios=("latency_sensitive",), clients=1, seeds=(0,))
    bare = dataclasses.replace(results, losses=(), selection=(), sweeps=results.sweeps[:1], traffic=())

    drawn = plots.save_all(bare, tmp_path / "plots", clips)

    assert [path.stem for path in drawn] == ["accuracy_by_arm", "cluster_samples"]
    assert plots.save_all(dataclasses.replace(bare, rows=(), sweeps=()), tmp_path / "none") == ()


def test_many_clients_are_drawn_together(tmp_path):
    results, clips = made_run(
        clients=7, clips=10, arms=("all_distill", "fedstill"), scenarios=("latency_sensitive",)
    )

    figure = plots.accuracy_by_arm(results, clips)

    assert [text.get_text() for text in figure.legends[0].texts] == ["each client", "all clients"]
    assert len(plots.loss_per_epoch(results).axes) == 4
    assert len(plots.save_all(results, tmp_path, clips)) == len(ALL_PLOTS)


def test_own_classes_are_shaded_and_bars_are_means():
    results, _ = made_run(arms=("all_distill_select",), scenarios=("latency_sensitive",), seeds=(0,))
    rows = tuple(
        SelectionRow("latency_sensitive", "all_distill_select", 0, 0, number, (10 * number, 1, 2, 3, 4, 5))
        for number in (1, 2, 3)
    )
    axes = plots.selected_classes(dataclasses.replace(results, selection=rows)).axes[0]

    assert [bar.get_height() for bar in axes.containers[0]] == [20, 1, 2, 3, 4, 5]
    assert len(axes.patches) - len(axes.containers[0]) == len(results.clients[0].classes) == 3


def test_page_markdown_and_console_show_the_same_numbers(run):
    results, clips = run
    page, markdown = page_of(results, clips), report.markdown_summary(results, clips)
    console = printed(report.console_table(results, clips))
    tables = summary.scenario_tables(results, clips)

    assert [table.scenario for table in tables] == ["latency_insensitive", "latency_sensitive"]
    for place, table in enumerate(tables):
        assert [line.arm for line in table.lines] == list(DEFAULT_ARMS)
        for line in table.lines:
            texts = [str(value) for value in (line.pooled, *line.clients)]
            if line.arm != "all_distill":
                texts.append(str(line.difference))
            for text in texts:
                assert text in page
                assert text in markdown
            rows = [row for row in console.splitlines() if row.strip().startswith(ARMS[line.arm] + "  ")]
            for value in (line.pooled, *line.clients):
                assert f"{100 * value.fraction:.1f}" in rows[place]


def test_headline_numbers_are_the_counts_of_the_rows(run):
    results, clips = run
    table = summary.scenario_tables(results, clips)[0]
    fedstill = next(line for line in table.lines if line.arm == "fedstill")
    rows = [row for row in results.rows if (row.scenario, row.arm) == (table.scenario, "fedstill")]

    assert fedstill.pooled.fraction == sum(r.correct for r in rows) / sum(r.total for r in rows)
    assert fedstill.pooled.recordings == 120
    assert fedstill.difference == compare(clips, "fedstill", "all_distill", scenario=table.scenario)


def test_what_counts_as_independent_is_said_everywhere():
    for speakers, said in (
        (0, "over distinct clips. This run does not say who speaks"),
        (8, "draw speakers, then recordings of each (8 speakers, 60 recordings)."),
        (5, "(5 speakers, 60 recordings); with fewer than 6 speakers p cannot be below 0.05"),
    ):
        results, clips = made_run(arms=("all_distill", "fedstill"), speakers=speakers)
        texts = (
            page_of(results, clips),
            report.markdown_summary(results, clips),
            " ".join(printed(report.console_table(results, clips)).split()),
        )
        for text in texts:
            assert said in text
            assert f"sign flips per {'speaker' if speakers else 'clip'}" in text
        label = "n.s.: 5 speakers cannot show it"
        assert [label in text.replace("\u00a0", " ") for text in texts] == [speakers == 5] * 2 + [False]


def test_teachers_clips_count_by_recording():
    results, clips = made_run(clips=100, speakers=6)
    teacher = dict(summary.teacher_accuracy(results, clips))
    assert teacher["client 0"].recordings == 50
    assert teacher["held-out public clips"].recordings == 100


def test_key_comparisons_ask_the_right_questions(run):
    results, clips = run
    asked = [(one.arm, one.baseline) for one in summary.key_comparisons(results, clips)[:8]]
    first = summary.scenario_tables(results, clips)[0]
    best = max(first.lines[:4], key=lambda line: line.pooled.fraction).arm

    assert best != "all_distill"
    assert asked == [
        ("fedstill", "all_distill"),
        ("fedstill", best),
        ("fedstill", "all_distill_equal_steps"),
        ("fedstill", "fedstill_without_selection"),
        ("fedstill", "prior_corrected"),
        ("fedstill", "oracle_classes"),
        ("all_distill_select", "all_distill_equal_steps"),
        ("all_distill_select_cluster", "all_distill_equal_steps"),
    ]


def test_synthetic_data_is_said_everywhere():
    real, clips = made_run(arms=("all_distill", "fedstill"), clips=20)
    made = dataclasses.replace(real, synthetic=True)
    for results, said in ((made, True), (real, False)):
        texts = [
            page_of(results, clips),
            report.markdown_summary(results, clips),
            printed(report.console_table(results, clips)),
            summary.what_ran(results),
            plots.traffic(results).get_suptitle(),
        ]
        for text in texts:
            assert ("synthetic data" in text.lower()) is said
    assert '<div class="synthetic"' in page_of(made, clips)
    assert '<div class="synthetic"' not in page_of(real, clips)


def test_traffic_is_per_client_and_whole_run(run):
    totals = {(one.scenario, one.arm): one for one in summary.traffic_totals(run[0])}
    one = totals["latency_sensitive", "all_distill_select"]
    assert (one.up_mb, one.down_mb) == (4.5, 267.0)  # 3 rounds of 1.5 MB up and 89 MB down
    assert totals["latency_sensitive", "all_distill_select_cluster"].up_mb == pytest.approx(0.45)
    assert [report.moved_text(one) for one in (0.0, 0.00055, 0.45, 1267.0)] == [
        "0.00 kB", "0.55 kB", "0.45 MB", "1,267.00 MB"
    ]  # fmt: skip


def test_text_from_the_run_cannot_inject(run):
    results, clips = run
    evil = "<script>alert(1)</script> [red]|x"
    failure = FailureRow("latency_sensitive", "fedstill", 0, 0, 1, evil)
    bad = dataclasses.replace(results, experiment=evil, failures=(failure,), config={"name": evil})

    assert "<script" not in page_of(bad, clips)
    assert "[red]" in printed(report.console_table(bad, clips))


def test_prototypes_that_shared_clips_are_told_everywhere():
    results, clips = made_run(arms=("all_distill", "all_distill_select"), clips=20)
    rows = tuple(
        ShareRow("latency_sensitive", "all_distill_select", client, 0, 60 + client, 10) for client in (0, 1)
    )
    shared = dataclasses.replace(results, shares=rows)
    pages = (
        page_of(shared, clips),
        report.markdown_summary(shared, clips),
        printed(report.console_table(shared, clips)),
    )
    for text in pages:
        assert "AllDistill+select up to 61 for 10 clips. Each took its share" in " ".join(text.split())
    assert "share of a clip" not in page_of(results, clips)


def test_failures_are_shown():
    results, clips = made_run(arms=("all_distill", "fedstill"), clips=20)
    said = "client 1 did not answer within 30 s"
    assert said in page_of(results, clips)
    assert said in report.markdown_summary(results, clips)
    assert "Failures" not in page_of(dataclasses.replace(results, failures=()), clips)


def test_run_of_one_arm_without_clips_still_reports():
    results, _ = made_run(arms=("fedstill",), clients=1, seeds=(0,), scenarios=("latency_sensitive",))

    assert "no paired clips" in page_of(results, ())
    assert "no paired clips" in report.markdown_summary(results)
    assert summary.key_comparisons(results, ()) == ()


def test_many_clients_keep_console_and_markdown_narrow():
    results, clips = made_run(clients=9, clips=8, arms=("all_distill", "fedstill"))

    assert "client 3" not in printed(report.console_table(results, clips))
    assert "client 8</th>" in page_of(results, clips)


def test_report_of_a_mixed_folder_is_refused(run, tmp_path):
    write_results(tmp_path, run[0])
    write_clips(tmp_path, made_run(clips=61)[1])

    with pytest.raises(ResultsError, match="two runs are mixed"):
        report.write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_missing_run_is_one_line(tmp_path):
    with pytest.raises(ResultsError, match="give the folder of a finished run"):
        report.write_report(tmp_path / "nothing")


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (754, "12.6 min"), (9000, "2.5 h")])
def test_durations_are_readable(seconds, text):
    assert summary.duration(seconds) == text


def test_a_report_needs_no_torch():
    """It takes the arms' names from the cloud's room, and must not get the networks with them."""
    code = "import sys, fedstill.evaluation.federated.report; print({'torch', 'flwr'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_the_report_says_whose_class_mix_was_used_and_why_not(tmp_path):
    results, clips = made_run(arms=("all_distill", "fedstill"), clips=20)
    where = ("latency_insensitive", "fedstill")
    decided = dataclasses.replace(
        results,
        decisions=(
            DecisionRow(*where, 0, 0, True, "other classes than the public ones", 0.07),
            DecisionRow(*where, 1, 0, False, "the device may have the public classes (p 0.412)", 0.0),
            DecisionRow(*where, 0, 1, False, "the device may have the public classes (p 0.081)", 0.0),
        ),
    )
    write_results(tmp_path, decided)
    assert read_results(tmp_path) == decided
    page = page_of(decided, clips)
    assert "the device may have the public classes (p 0.412)" in page
    assert "+7.0" in page
    text = report.markdown_summary(decided, clips)
    assert "| fedstill | 1 of 3 | 2: the device may have the public classes |" in text
    assert "Class mixes" not in report.markdown_summary(results, clips)
    line = "Class mix used: fedstill for 1 of 3 students"
    assert line in " ".join(printed(report.console_table(decided, clips)).split())
    assert "Class mix" not in printed(report.console_table(results, clips))


def test_the_report_names_pretrained_weights_with_hash_and_licence():
    results, clips = made_run(arms=("all_distill",), clips=20)
    row = PretrainedRow("visual", "vit_tiny_patch16_224", "0f" * 32, "Apache-2.0", True)
    taught = dataclasses.replace(results, pretrained=(row,))
    note = (
        f"Pretrained visual encoder, frozen: vit_tiny_patch16_224, licence Apache-2.0, sha256 {'0f' * 32}. "
        "Devices cannot run this teacher, so there is no row for it on their clips."
    )
    for text in (page_of(taught, clips), report.markdown_summary(taught, clips)):
        assert note in text
    assert "Pretrained" not in page_of(results, clips) + report.markdown_summary(results, clips)


@pytest.mark.parametrize("field", ["decisions", "pretrained", "shares"])
def test_results_of_an_older_version_still_read(field, tmp_path):
    results, _ = made_run(arms=("all_distill",))
    path = write_results(tmp_path, results)
    document = json.loads(path.read_text())
    del document[field]
    path.write_text(json.dumps(document))
    assert read_results(tmp_path) == results


def test_page_markdown_and_console_show_each_device_s_student() -> None:
    results, clips = made_run()
    row = results.rows[-1]
    choice = ChoiceRow(
        "latency_sensitive",
        "fedstill",
        row.client,
        row.seed,
        "rendered+prior",
        "surely better",
        0.71,
        0.55,
        0.8,
        (),
    )
    results = dataclasses.replace(results, choices=(choice,))
    found = next(
        one for one in results.rows
        if (one.scenario, one.arm, one.client, one.seed) == ("latency_sensitive", "fedstill", row.client, row.seed)
    )  # fmt: skip
    for text in (report.markdown_summary(results, clips), report.html_report(results, clips, [])):
        assert "rendered+prior" in text
        assert "71.0 % [55, 80]" in text
        assert f"{100 * found.correct / found.total:.1f} %" in text
    assert "1 rendered+prior" in summary.student_line(results)
    assert summary.student_line(dataclasses.replace(results, choices=())) == ""
