"""A real server under ``fedstill loadtest live``, watched in a browser, and the same page after a restart."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command import CliRunner
from helpers.headless import Browser

from fedstill.cli import main as cli
from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings
from fedstill.common.flower_cli import free_port
from fedstill.evaluation.serving.closed_loop import plain_rate
from fedstill.evaluation.serving.learnt_state import learn_missing
from fedstill.evaluation.serving.results import read_serving_results
from fedstill.evaluation.serving.served_process import ServedProcess, ServerOptions
from fedstill.evaluation.serving.served_setting import ServedSetting, tiny_setting
from fedstill.evaluation.serving.task_images import held_out_images


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServedSetting, ServerOptions]:
    """Two easy tasks on timm's tiny ViT, learnt."""
    folder = tmp_path_factory.mktemp("live")
    setting = tiny_setting(folder)
    learn_missing(folder / "state", setting.tasks, setting.weights, LearnSettings(40, 10))
    return setting, ServerOptions(folder / "state", setting.arguments)


def loadtest(setting: ServedSetting, server: ServedProcess, out: Path, *options: str) -> None:
    arguments = [
        "loadtest",
        "live",
        "--target",
        server.target,
        "--insecure",
        "--seeds",
        "1",
        "--out",
        str(out),
        *options,
    ]
    arguments += ["--tasks", ",".join(task.name for task in setting.tasks)]
    for task in setting.tasks:
        arguments += ["--images", f"{task.name}={task.place}"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_a_live_server_is_measured_by_true_labels(
    setting: tuple[ServedSetting, ServerOptions], tmp_path: Path
) -> None:
    served, options = setting
    with ServedProcess(options, "faithful") as server:
        profile = server.profile()
        assert set(profile.tasks) == {task.name for task in served.tasks}
        assert plain_rate(server, [held_out_images(task, 5) for task in served.tasks], 0.5) > 1
        loadtest(served, server, tmp_path / "run", "--rate", "10", "--seconds", "3", "--latency-scale", "10")
    results = read_serving_results(tmp_path / "run")
    assert results.policies() == ["faithful"]
    row = results.runs[0]
    assert row.queries > 5
    assert row.type1 + row.type2 == row.queries  # deadlines of six seconds and more
    assert row.accuracy >= 0.9  # dark squares and light ones
    assert set(row.schedules) <= {schedule.name for schedule in profile.schedules}
    assert sum(size * count for size, count in enumerate(row.batch_sizes, 1)) == row.queries
    assert row.client is not None
    assert row.client.failed == {}


@pytest.mark.slow
def test_the_page_of_a_server_moves_under_load_and_comes_back_after_a_restart(
    setting: tuple[ServedSetting, ServerOptions], tmp_path: Path
) -> None:
    served, options = setting
    options = replace(options, arguments=(*options.arguments, "--web", f"127.0.0.1:{free_port()}"))
    with Browser(tmp_path) as browser:
        browser.show(1200, 900)
        with ServedProcess(options, "fedstill") as server:
            browser.open(f"http://127.0.0.1:{server.web_port}/")
            browser.until(lambda: browser.text("state") == "ready")
            assert browser.text("load").startswith("0")
            assert "policy fedstill" in browser.text("about")
            assert all(task in browser.text("tasks") for task in ("left", "right"))
            seconds = ("--rate", "20", "--seconds", "6", "--latency-scale", "10")
            load = threading.Thread(target=loadtest, args=(served, server, tmp_path / "run", *seconds))
            load.start()
            seen: set[str] = set()
            browser.until(lambda: bool(seen.add(browser.text("load"))) or len(seen) >= 4)
            browser.until(lambda: browser.text("share").endswith("%"))
            browser.until(
                lambda: browser.evaluate("document.querySelectorAll('[data-schedule]').length") >= 1
            )
            load.join(60)
            assert not load.is_alive()
            queries = read_serving_results(tmp_path / "run").runs[0].queries
            browser.until(lambda: browser.text("load-sub").startswith(f"{queries} since the start"))
        browser.until(lambda: browser.text("state").startswith("no connection"))
        with ServedProcess(options, "pets"):
            browser.until(lambda: browser.text("state") == "ready", 60)
            browser.until(lambda: browser.evaluate("document.body.dataset.restarts") == "1")
            assert "policy pets" in browser.text("about")
            assert browser.text("load-sub").startswith("0 since the start")
