"""``fedstill loadtest virtual`` from the command line to results, pictures, tables, and one-line mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command import CliRunner

from fedstill.cli import main as cli
from fedstill.cli.shared.console import console, errors
from fedstill.cloud_server.serving.scheduling.profile import profile_to_plain
from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile
from fedstill.evaluation.serving.results import read_serving_results
from fedstill.evaluation.serving.virtual import LoadTest, run_virtual

pytestmark = pytest.mark.slow

ARGUMENTS = ("loadtest", "virtual", "--seconds", "5", "--seeds", "3")
PICTURES = {f"fig3.{number}.png" for number in range(9, 19)}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """The command inside this process, on a wide terminal."""
    monkeypatch.setattr(errors, "_width", 300)
    monkeypatch.setattr(console, "_width", 200)
    monkeypatch.delenv("FEDSTILL_DATA", raising=False)
    return CliRunner()


def succeed(quick: CliRunner, *arguments: str) -> str:
    done = quick.invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A load test of two traces at two loads, with a Markdown page."""
    folder = tmp_path_factory.mktemp("loadtest")
    trace = folder / "burst.csv"
    trace.write_text("arrival_s\n" + "\n".join(str(n / 10 if n < 50 else 5 + n / 1000) for n in range(90)))
    arguments = [*ARGUMENTS, "--trace", f"synthetic,{trace}", "--rate", "300", "--load", "1,2"]
    arguments += ["--policies", "pets,infaas,tome10,faithful,fedstill", "--out", str(folder / "run")]
    done = CliRunner().invoke(cli.app, [*arguments, "--markdown", str(folder / "page.md")])
    assert done.exit_code == 0, done.output
    assert f"{5 * 2 * 2 * 3} runs, 0 queries skipped" in done.stdout
    steps = (5 + 1) * 2 * 2 * 3  # the upper references are one
    assert f"{steps}/{steps}" in done.stderr
    return folder


def test_results_hold_one_run_per_policy_trace_load_and_seed(tested: Path) -> None:
    plain = json.loads((tested / "run" / "results.json").read_text())
    assert len(plain["runs"]) == 5 * 2 * 2 * 3
    wanted = {
        "policy",
        "trace",
        "load",
        "seed",
        "utility_offered",
        "utility_earned",
        "type1",
        "type2",
        "type3",
    }
    wanted |= {"type4", "accuracy", "batch_sizes", "schedules", "waiting_ms", "inference_ms"}
    for run in plain["runs"]:
        assert wanted <= set(run)
        assert run["type1"] + run["type2"] + run["type3"] + run["type4"] == run["queries"]
        assert 0 < run["utility_earned"] <= run["utility_offered"]
        assert sum(size * count for size, count in enumerate(run["batch_sizes"], start=1)) == sum(
            run["schedules"].values()
        )


def test_policies_of_a_seed_meet_the_same_load(tested: Path) -> None:
    results = read_serving_results(tested / "run")
    for trace, load in results.places():
        for seed in range(3):
            offered = {results.rows(p, trace, load)[seed].utility_offered for p in results.policies()}
            assert len(offered) == 1


@pytest.mark.parametrize(("trace", "mean"), [("synthetic", 1), ("poisson", 1), ("gamma", 1), ("step", 4)])
def test_drawn_loads_have_the_rate_that_was_asked_for(trace: str, mean: float) -> None:
    """The middle third of a step has ten times its rate."""
    test = LoadTest(traces=(trace,), policies=("pets",), loads=(2.0,), seeds=3, seconds=30, rate=100)
    queries = sum(row.queries for row in run_virtual(test, thesis_profile(), None, "").runs)
    assert queries == pytest.approx(3 * 30 * 2 * 100 * mean, rel=0.25)


def test_a_rate_is_kept_and_a_load_doubles_it(tested: Path) -> None:
    results = read_serving_results(tested / "run")
    once, twice = (sum(r.queries for r in results.rows("pets", "burst", load)) for load in (1.0, 2.0))
    assert once == pytest.approx(3 * 5 * 300, rel=0.5)
    assert twice == pytest.approx(2 * once, rel=0.1)


def test_pictures_and_page_are_written(tested: Path) -> None:
    drawn = {path.name for path in (tested / "run" / "plots").iterdir()}
    assert drawn == PICTURES | {"utility_over_load.png"}
    page = (tested / "page.md").read_text()
    assert "fedstill over OTAS" in page
    assert "strict bound" in page
    for name in drawn:
        assert f"(page/{name})" in page
        assert (tested / "page" / name).stat().st_size > 5000


@pytest.mark.parametrize("target", ["fig3.10", "fig3.11", "fig3.14", "fig3.15"])
def test_figures_are_reproduced(tested: Path, quick: CliRunner, target: str) -> None:
    shown = succeed(quick, "reproduce", target, str(tested / "run"))
    assert "Thesis, in words" in shown
    assert "OTAS" in shown
    assert f"{target}.png" in shown


def test_a_report_shows_the_table_again(tested: Path, quick: CliRunner) -> None:
    assert "synthetic, load 2" in succeed(quick, "report", str(tested / "run"))


def test_otas_is_another_name_of_faithful(quick: CliRunner, tmp_path: Path) -> None:
    succeed(quick, *ARGUMENTS, "--policies", "otas", "--out", str(tmp_path / "run"))
    assert read_serving_results(tmp_path / "run").policies() == ["faithful"]


def test_the_same_seeds_give_the_same_numbers() -> None:
    test = LoadTest(traces=("synthetic",), policies=("fedstill",), seeds=2, seconds=5, jitter=0.1)
    first, again = (run_virtual(test, thesis_profile(), None, "") for _ in range(2))
    assert first == again
    assert first.runs[0].utility_earned != first.runs[1].utility_earned


def test_queries_of_equal_worth_are_the_same_queries() -> None:
    test = LoadTest(traces=("synthetic",), policies=("pets",), seeds=1, seconds=5)
    mixed, equal = (
        run_virtual(one, thesis_profile(), None, "").runs[0] for one in (test, replace(test, equal=True))
    )
    assert equal.queries == mixed.queries == equal.utility_offered > mixed.utility_offered
    assert equal.utility_earned == equal.type1


def test_a_measured_profile_and_a_load_time_are_used(quick: CliRunner, tmp_path: Path) -> None:
    plain = profile_to_plain(thesis_profile())
    plain["name"] = "measured here"
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(plain))
    shown = succeed(
        quick,
        *ARGUMENTS,
        "--profile",
        str(path),
        "--policies",
        "infaas",
        "--load-seconds",
        "2",
        "--out",
        str(tmp_path / "run"),
    )
    assert "profile measured here" in shown
    assert read_serving_results(tmp_path / "run").runs[0].loading_seconds >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("loadtest",), "fedstill loadtest live --target HOST:PORT of a running server"),
        ((*ARGUMENTS, "--policies", "nobody"), "unknown policy 'nobody' (known: pets, infaas"),
        ((*ARGUMENTS, "--policies", "otas,faithful"), "--policies names nothing, or something twice"),
        ((*ARGUMENTS, "--policies", ""), "--policies names nothing, or something twice"),
        ((*ARGUMENTS, "--policies", "pets,pets"), "--policies names nothing, or something twice"),
        (
            (*ARGUMENTS, "--trace", "nowhere.csv"),
            "unknown trace 'nowhere.csv': give synthetic, poisson, gamma, mmpp, step, azure or a CSV file",
        ),
        (
            (*ARGUMENTS, "--trace", "azure"),
            "--trace azure needs traces/azure_llm_2023_code.csv below the folder",
        ),
        ((*ARGUMENTS, "--profile", "nowhere.json"), "nowhere.json: not a readable profile"),
        ((*ARGUMENTS, "--load", "many"), "--load: 'many' is not a number; for instance --load 0.5,1,2"),
        ((*ARGUMENTS, "--load", "0"), "--load must lie above 0 and not above 100"),
        ((*ARGUMENTS, "--seconds", "0.5"), "--seconds must lie between 1 and 86400"),
        ((*ARGUMENTS, "--jitter", "-1"), "--jitter must lie between 0 and 1"),
        ((*ARGUMENTS, "--rate", "0"), "--rate must lie above 0"),
        (("reproduce", "fig3.10", "nowhere"), "run fedstill loadtest first"),
    ],
)
def test_a_mistake_is_one_line(quick: CliRunner, arguments: tuple[str, ...], message: str) -> None:
    done = quick.invoke(cli.app, arguments)
    assert done.exit_code == 2, repr(done.exception)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert message in lines[0]


def test_results_are_not_overwritten(tested: Path, quick: CliRunner) -> None:
    done = quick.invoke(cli.app, [*ARGUMENTS, "--out", str(tested / "run")])
    assert done.exit_code == 2
    assert "holds results already; choose another --out" in done.stderr


def test_an_unknown_target_of_a_load_test_lists_the_known(tested: Path, quick: CliRunner) -> None:
    done = quick.invoke(cli.app, ["reproduce", "table5.2", str(tested / "run")])
    assert done.exit_code == 2
    assert (
        "unknown target 'table5.2' for a load test (known: fig3.10, fig3.11, fig3.14, fig3.15)" in done.stderr
    )
