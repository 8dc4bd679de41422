"""What a microphone and a camera cost: counted on the same clips, and shown alike on page, in markdown and console."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.results import made_run
from rich.console import Console

from fedstill.common.run_layout import DEVICES_FILE
from fedstill.evaluation.capture_cost import capture_costs, lesson
from fedstill.evaluation.federated import report
from fedstill.evaluation.results import (
    AccuracyRow,
    ClientClasses,
    ClipRow,
    Results,
    ResultsError,
    read_results,
    write_results,
)
from fedstill.simulation.robustness_devices import captures_of

GENERIC, OURS, SCENARIO = "all_distill_equal_steps", "fedstill", "latency_sensitive"
RIGHT = {  # of 40 clips: the generic student's, and fedstill's
    0: (36, 36),
    1: (20, 30),
    2: (30, 32),
}


def made(*captures: str, shared: bool = True) -> tuple[Results, tuple[ClipRow, ...]]:
    """Devices that record so; the first clips of each are right."""
    base, _ = made_run(arms=(GENERIC, OURS), scenarios=(SCENARIO,), seeds=(0,), speakers=6)
    clips = tuple(
        ClipRow(
            SCENARIO,
            client,
            0,
            tuple(f"{'' if shared else client}clip{number}" for number in range(40)),
            {arm: "1" * right + "0" * (40 - right) for arm, right in zip((GENERIC, OURS), RIGHT[client], strict=True)},
            tuple(f"sound{number}" for number in range(40)),
            tuple(f"speaker{number % 8}" for number in range(40)),
        )
        for client in range(len(captures))
    )  # fmt: skip
    rows = tuple(
        AccuracyRow(SCENARIO, arm, row.client, 0, bits.count("1"), 40)
        for row in clips
        for arm, bits in row.correct.items()
    )
    clients = tuple(ClientClasses(client, {"happy": 80}) for client in range(len(captures)))
    return replace(base, clients=clients, captures=captures, rows=rows), clips


def printed(results: Results, clips: tuple[ClipRow, ...], width: int = 80) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(report.console_costs(results, clips))
    return capture.get()


def test_lost_is_against_the_same_clips_as_the_public_ones_and_back_against_the_generic_student() -> None:
    plain, noisy, blurred = capture_costs(*made("", "white noise, gamma", "blur"))
    assert (plain.capture, plain.lost) == ("as the public clips", None)
    assert [100 * one.generic.fraction for one in (plain, noisy, blurred)] == [90, 50, 75]
    assert noisy.lost is not None
    assert blurred.lost is not None
    assert (noisy.lost.difference_points, blurred.lost.difference_points) == (-40, -15)
    assert noisy.lost.low < -40 < noisy.lost.high
    gained = [one.back.difference_points for one in (plain, noisy, blurred) if one.back]
    assert gained == pytest.approx([0, 25, 5])


def test_the_lesson_is_the_mean_of_the_devices() -> None:
    assert lesson(capture_costs(*made("", "white noise", "blur"))) == (
        "Another microphone and camera: -27.5 points on average with the generic student, +15.0 back with fedstill. "
        "As the public clips: +0.0 with fedstill."
    )


def test_without_a_device_with_the_same_clips_nothing_is_known_to_be_lost() -> None:
    for made_up in (made("", "white noise", shared=False), made("gamma", "white noise")):
        costs = capture_costs(*made_up)
        assert len(costs) == 2
        assert [one.lost for one in costs] == [None, None]
        assert lesson(costs) == ""


def test_a_run_whose_devices_record_alike_has_no_such_table() -> None:
    results, clips = made("", "")
    assert capture_costs(results, clips) == ()
    assert report.console_costs(results, clips) is None
    for text in (report.html_report(results, clips, ()), report.markdown_summary(results, clips)):
        assert "What a microphone" not in text


def test_nor_has_one_without_the_arms_for_it() -> None:
    results, clips = made("", "white noise")
    rows = tuple(row for row in results.rows if row.arm == OURS)
    assert capture_costs(replace(results, rows=rows), clips) == ()


def test_page_markdown_and_console_say_it() -> None:
    results, clips = made("", "white noise, gamma", "blur")
    said = lesson(capture_costs(results, clips))
    page = report.html_report(results, clips, ()).replace("\u00a0", " ")
    markdown = report.markdown_summary(results, clips)
    for text in (page, markdown):
        assert "What a microphone and a camera cost" in text
        assert said in text
        for one in capture_costs(results, clips):
            for cell in (one.capture, one.generic, one.personal, one.back):
                assert str(cell) in text
    console = printed(results, clips)
    assert said in " ".join(console.split())
    row = next(line for line in console.splitlines() if "white noise, gamma" in line)
    assert row.split()[:5] == ["client", "1:", "white", "noise,", "gamma"]
    assert [word for word in row.split()[5:] if word[0] in "+-57"] == ["50.0", "-40.0", "75.0", "+25.0"]


def test_many_devices_are_left_to_the_page() -> None:
    results, clips = made("", "white noise", "blur")
    crowd = tuple(ClientClasses(client, {}) for client in range(3, 20))
    captures = results.captures + ("",) * len(crowd)
    console = printed(replace(results, clients=(*results.clients, *crowd), captures=captures), clips)
    assert "client" not in console
    assert "-27.5 points" in " ".join(console.split())


def test_how_devices_record_is_kept_and_older_files_do_not_say(tmp_path: Path) -> None:
    results, _ = made("", "white noise")
    file = write_results(tmp_path, results)
    assert read_results(tmp_path).captures == ("", "white noise")
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "captures": ["blur"]}))
    with pytest.raises(ResultsError, match="captures: 1 for 2 clients"):
        read_results(tmp_path)
    del document["captures"]
    file.write_text(json.dumps(document))
    assert read_results(tmp_path).captures == ()


def test_how_a_device_records_in_words(tmp_path: Path) -> None:
    assert captures_of(tmp_path) == ()
    strengths = [
        {},
        {"white_noise": 1.0, "gamma": 1.0},
        {"low_pass": 1.5, "blur": 1.5},
        {"blur": 1.0, "opus": 0.5},
    ]
    rows = [{"client": client, "strengths": one} for client, one in enumerate(strengths)]
    (tmp_path / DEVICES_FILE).write_text(json.dumps(rows))
    assert captures_of(tmp_path) == ("", "white noise, gamma", "low pass, blur (x1.5)", "blur, opus (x0.5)")
