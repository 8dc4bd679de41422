"""``fedstill warmup`` and ``warmup-study`` end to end on timm's test ViT and a few grey pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.command import CliRunner
from helpers.image_folders import made_folder
from safetensors.torch import save_file
from test_elastic_study import text_of

from fedstill.cli.main import app
from fedstill.cli.warmup import read_budget
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.profile import read_profile
from fedstill.cloud_server.warmup.planner import Budget
from fedstill.cloud_server.warmup.warmed_models import read_catalogue
from fedstill.common.errors import DataError
from fedstill.datasets.images.image_tasks import open_image_task
from fedstill.evaluation.elastic.tables import sheet_grid
from fedstill.evaluation.results import ResultsError
from fedstill.evaluation.warmup.aims import aims
from fedstill.evaluation.warmup.means import mean_over_reductions
from fedstill.evaluation.warmup.results import SYSTEMS, WarmupSettings, WarmupStudy, read_plain
from fedstill.evaluation.warmup.serving import POLICIES, TWICE
from fedstill.evaluation.warmup.study import run_warmup_study
from fedstill.evaluation.warmup.tables import WARMUP_TARGETS, warmup_page, warmup_sheet

pytestmark = pytest.mark.slow

SETTINGS = WarmupSettings(
    ("pets",), 16, 4, 8, 1, 8, 1e-3, (0, 2, 5, 10, 15, 20, 40), 10, 3, (0, 10, 15, 20, 40), 2, 20.0
)

AZURE = np.sort(np.random.default_rng(0).uniform(0, 60, 400))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Weights of timm's test_vit (160 pixels, 100 patches, 6 layers) and a folder of cats and dogs."""
    folder = tmp_path_factory.mktemp("warmup")
    torch.manual_seed(0)
    state = timm.create_model("test_vit").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "test_vit.safetensors")
    made_folder(folder / "pets")
    return folder


@pytest.fixture(scope="module")
def study(place: Path) -> WarmupStudy:
    trunk = load_trunk(place / "test_vit.safetensors")
    task = open_image_task("pets", place / "pets")
    return run_warmup_study(trunk, [task], SETTINGS, place / "study", AZURE, lambda _: None)


def warm(place: Path, *options: str):
    command = ["warmup", "--task", str(place / "pets"), "--weights", str(place / "test_vit.safetensors")]
    sizes = ["--reductions", "0,10,15,20,40", "--middle", "10", "--measured", "0,15,40", "--epochs", "1"]
    return CliRunner().invoke(app, [*command, *sizes, "--out", str(place / "warm"), *options])


def test_warmup_previews_warms_and_leaves_a_profile_to_serve_by(place: Path) -> None:
    command = ["warmup", "--task", str(place / "pets"), "--weights", str(place / "test_vit.safetensors")]
    sizes = ["--reductions", "0,10,40", "--middle", "10", "--measured", "0,40", "--out", str(place / "no")]
    asked = CliRunner().invoke(app, [*command, *sizes], input="n\n")
    assert asked.exit_code == 0
    assert "reduction 10" in asked.output
    assert "Start?" in asked.output
    assert not (place / "no" / "models").exists()

    done = warm(place, "--budget", "models=3", "--yes")
    assert done.exit_code == 0, done.output
    assert "fine-tuned at 10, 40, 15" in done.output or "fine-tuned at 10, 40, 20" in done.output
    catalogue = read_catalogue(place / "warm")
    assert len(catalogue.models) == 4  # and the model without reduction
    assert set(catalogue.recipes) == {"0", "15", "40"}
    profile = read_profile(place / "warm" / "profile.json")
    assert [s.token_delta for s in profile.schedules if not s.model] == [0, -15, -40]
    make_policy("prodigy", profile)
    before = {path: path.stat().st_mtime_ns for path in (place / "warm" / "models").iterdir()}
    assert warm(place, "--budget", "models=3", "--yes").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (place / "warm" / "models").iterdir()} == before


def test_each_mistake_is_one_line_with_exit_code_2(place: Path, tmp_path: Path) -> None:
    many = made_folder(tmp_path / "many", per_class=2, classes=("a", "b", "c"))
    for options, said in (
        (["--budget", "money=3"], "write models=6,time=30m,storage=200MB"),
        (
            ["--budget", "storage=0.001MB", "--out", str(tmp_path / "o")],
            "too small for the first models, at reductions",
        ),
        (["--reductions", "0,10,10,40"], "10 and 10 are the same forward pass on 100 patches: leave 10 out"),
        (["--reductions", "0,10,40,60,70"], "70 and 60 are the same forward pass"),
        (["--middle", "11"], "--middle 11: is not one of the allowed"),
        (["--keep-mb", "0.001", "--budget", "models=3"], "--keep-mb 0.001: a model takes"),
        (["--planner", "best"], "use thesis or coverage"),
        (["--task", str(tmp_path / "none")], "is not a known task"),
        (["--task", str(many), "--train-images", "2"], "2 training images for 3 classes, none of"),
        (["--epochs", "2", "--out", str(place / "warm")], "holds models of another"),
    ):
        if said.startswith("holds"):
            (place / "warm").mkdir(exist_ok=True)
            if not (place / "warm" / "warmed.json").exists():
                assert warm(place, "--budget", "models=3", "--yes").exit_code == 0
        failed = warm(place, "--yes", *options)
        text = " ".join(failed.output.split())
        assert failed.exit_code == 2, (options, text)
        assert said in text, text
        assert "Traceback" not in text


def test_a_budget_reads_as_it_is_written() -> None:
    assert read_budget("models=6,time=30m,storage=200MB") == Budget(1800.0, 200_000_000, 6)
    assert read_budget("time=1.5h") == Budget(seconds=5400.0)
    for text in ("", "models=6,models=7", "time=30", "storage=2GB", "models=six"):
        with pytest.raises(DataError, match="write models=6"):
            read_budget(text)


def test_the_study_runs_every_system_on_the_same_images(study: WarmupStudy, place: Path) -> None:
    assert [(run.task, run.seed) for run in study.runs] == [("pets", 0), ("pets", 1)]
    for run in study.runs:
        assert [row.system for row in run.systems] == list(SYSTEMS)
        assert {len(digits) for row in run.systems for digits in row.right.values()} == {8}
        assert run.system("vanilla").models == (0,)
        assert run.system("maxprune").models == (40,)
        assert len(run.chosen["prodigy"]) == 3
        assert run.seconds(run.chosen["prodigy"]) > 0
        assert {(row.policy, row.trace) for row in run.served} == {
            (policy, trace) for policy in POLICIES for trace in ("synthetic", TWICE, "azure")
        }
        assert all(list(row.within) == sorted(row.within) for row in run.served)
        # A deadline is kept or the query is not run: nobody answers after the objective.
        assert all(row.within[9] == pytest.approx(row.in_time) for row in run.served)
    assert study == read_plain(WarmupStudy, place / "study" / "warmup.json")
    assert not (place / "study" / "pets-0").exists()  # weights are gone once their numbers are kept


def test_a_study_goes_on_where_it_was_and_refuses_other_settings(study: WarmupStudy, place: Path) -> None:
    trunk = load_trunk(place / "test_vit.safetensors")
    task = open_image_task("pets", place / "pets")
    lines: list[str] = []
    again = run_warmup_study(trunk, [task], SETTINGS, place / "study", AZURE, lines.append)
    assert all(" on " in line for line in lines)  # loads only: nothing was trained or measured again
    assert again.runs == study.runs
    with pytest.raises(ResultsError, match="a study of other settings"):
        run_warmup_study(trunk, [task], replace(SETTINGS, epochs=2), place / "study", None, pytest.fail)
    twice = replace(SETTINGS, grid=(0, 60, 70))
    with pytest.raises(DataError, match="same forward pass"):
        run_warmup_study(trunk, [task], twice, place / "other", None, pytest.fail)


def test_the_mean_counts_every_allowed_reduction(study: WarmupStudy) -> None:
    run = study.runs[0]
    row = replace(
        run.system("vanilla"),
        right={"0": "11111111", "10": "11111111", "15": "0" * 8, "20": "0" * 8, "40": "0" * 8},
    )
    made = replace(run, systems=(row,))
    assert mean_over_reductions(study, made, "vanilla") == pytest.approx(4 / 7)  # 0, 2, 5, 10 of seven


def test_aims_are_met_or_missed_by_what_was_measured(study: WarmupStudy) -> None:
    def verdicts(prodigy: str, vanilla: str) -> dict[str, str]:
        rows = {
            "prodigy": dict.fromkeys(("0", "10", "15", "20", "40"), prodigy),
            "vanilla": {"0": "11111111", **dict.fromkeys(("10", "15", "20", "40"), vanilla)},
            "exhaustive": dict.fromkeys(("0", "10", "15", "20", "40"), "11111111"),
        }
        run = study.runs[0]
        systems = tuple(replace(row, right=rows.get(row.system, row.right)) for row in run.systems)
        sheet = aims(replace(study, runs=(replace(run, systems=systems),)))
        return {aim: verdict for _, aim, _, verdict in sheet.rows}

    good, bad = verdicts("11111111", "00000000"), verdicts("11110000", "11111111")
    gain, behind = (
        f"{SYSTEMS['prodigy']}: {aim}"
        for aim in ("mean accuracy 20 points over vanilla", "at most 2 points behind Exhaustive")
    )
    assert (good[gain], good[behind]) == ("met", "met")
    assert (bad[gain], bad[behind]) == ("missed", "missed")
    assert len([aim for aim in good if "Clipper" in aim]) == 6  # two policies, three loads


def test_every_target_renders_and_stands_on_the_page(study: WarmupStudy, place: Path) -> None:
    wanted = [target for target in WARMUP_TARGETS if target != "table4.1"]
    page = warmup_page(study, "fedstill warmup-study")
    for target in wanted:
        sheet = warmup_sheet(target, study)
        assert sheet.title in page
        assert sheet.rows
        assert sheet.title[:10] in text_of(sheet_grid(sheet))
        assert CliRunner().invoke(app, ["reproduce", target, str(place / "study")]).exit_code == 0
    with pytest.raises(ResultsError, match="its grid lacks 10, 15 or 20"):
        warmup_sheet("table4.1", replace(study, runs=tuple(replace(run, blends={}) for run in study.runs)))
    if all(run.blends for run in study.runs):
        assert "0.10r10+0.90r20" in page
    assert {path.name for path in (place / "study" / "plots").iterdir()} == {"fig4.7.png", "fig4.10.png"}
    rendered = CliRunner().invoke(
        app, ["warmup-study", "--out", str(place / "study"), "--render", "--markdown", str(place / "page.md")]
    )
    assert rendered.exit_code == 0, rendered.output
    assert "![fig4.7](page/fig4.7.png)" in (place / "page.md").read_text()
    assert (place / "page" / "fig4.7.png").exists()
    missing = CliRunner().invoke(app, ["reproduce", "fig4.7", str(place)])
    assert missing.exit_code == 2
    assert "fedstill warmup-study" in missing.output


def test_the_page_holds_no_path(study: WarmupStudy) -> None:
    page = warmup_page(study, "fedstill warmup-study --seeds 2")
    assert "`fedstill warmup-study --seeds 2`" in page
    assert json.dumps(page).count("/tmp") == 0
