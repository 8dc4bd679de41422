"""``fedstill tasks``: from a folder of images to a served task and its profile, and one line for each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from helpers.command import CliRunner
from helpers.image_folders import made_folder
from safetensors.torch import save_file

from fedstill.cli.main import app
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry

ARCHITECTURE = "test_vit"  # timm's own tiny ViT for tests: 160 pixels, 100 patches, 6 layers


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COLUMNS", raising=False)  # a narrow terminal gets a block for each task
    torch.manual_seed(0)
    state = timm.create_model(ARCHITECTURE).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "test_vit.safetensors")
    made_folder(tmp_path / "pets")
    return tmp_path


def run(place: Path, *arguments: str):
    command = ["tasks", *arguments, "--registry", str(place / "tasks")]
    if arguments[0] in ("add", "profile"):
        command += ["--weights", str(place / "test_vit.safetensors")]
    return CliRunner().invoke(app, command)


def test_add_list_profile_remove_and_back(place: Path) -> None:
    images = str(place / "pets")
    (place / "pets" / "train" / "cat" / "notes.txt").write_text("no picture")
    added = run(place, "add", "pets", "--images", images, "--prompts", "1,2", "--epochs", "1")
    assert added.exit_code == 0, added.output
    assert "pets version 1: 2 classes" in added.output
    assert "train and validation: 20 images, cat 10, dog 10\ntest: 8 images, cat 4, dog 4\n" in added.output
    assert "left out: 1 files in all\nleft out: 1 x train/cat/*.txt: no picture\n" in added.output
    assert "pets: 2 prompts, loss" in added.stderr
    assert "2/2" in added.stderr  # one epoch for each of two numbers of prompts
    assert run(place, "add", "pets", "--images", images, "--utility", "0.3").exit_code == 0
    listed = run(place, "list", "--all").output
    rows = [line.split() for line in listed.splitlines() if "pets" in line]
    assert [row[1:4] for row in rows] == [["1", "no", "2"], ["2", "yes", "2"]]
    assert "1, 2" in listed
    assert "600 ms, 0.3" in listed
    assert run(place, "activate", "pets", "1").exit_code == 0

    out = place / "profile.json"
    options = ["--images", f"pets={images}", "--schedules=-20,0,1,2", "--val-images", "4", "--batches", "1,2"]
    profiled = run(place, "profile", "--out", str(out), *options)
    assert profiled.exit_code == 0, profiled.output
    plain = json.loads(out.read_text())
    assert plain["tasks"] == ["pets"]
    assert {entry["name"] for entry in plain["schedules"]} <= {"-20", "0", "+1", "+2"}

    plain["schedules"] = [{**one, "fixed_seconds": 900.0} for one in plain["schedules"]]  # of a very busy day
    out.write_text(json.dumps(plain))
    stale = run(place, "profile", "--check", str(out), "--batches", "1,2")
    assert (stale.exit_code, "0.00 of the stored time" in stale.output) == (1, True)
    assert "measure again on an idle machine" in stale.output
    out.write_text(json.dumps(plain | {"trunk": "f" * 64}))
    other = run(place, "profile", "--check", str(out))
    assert (other.exit_code, "measured with other weights" in other.output) == (2, True)

    assert run(place, "remove", "pets").exit_code == 0
    assert "no tasks" in run(place, "list").output
    store = TaskRegistry(place / "tasks")
    assert len(store.versions("pets")) == 2
    store.close()


def test_a_task_may_be_the_trunks_feature(place: Path) -> None:
    added = run(place, "add", "search", "--embedding", "--images", str(place / "pets"))
    assert added.exit_code == 0, added.output
    assert re.search(r"search version 1: embedding, \d+\.\d % of the validation images right", added.output)
    assert "search version 2: embedding, not measured" in run(place, "add", "search", "--embedding").output
    row = next(line for line in run(place, "list").output.splitlines() if "search" in line).split()
    store = TaskRegistry(place / "tasks")
    (version,) = store.active().values()
    assert (row[3], row[-2]) == ("embedding", version.trunk[:8])
    assert store.load(version).output == version.output == "embedding"
    assert store.load(version).head_weight.shape == (0, 64)
    store.close()


def test_each_mistake_is_one_line_with_exit_code_2(place: Path) -> None:
    images = ["--images", str(place / "pets")]
    assert run(place, "add", "pets", *images).exit_code == 0
    profile = ["profile", "--out", str(place / "p.json"), "--images", f"pets={place / 'pets'}"]
    for arguments, said in (
        (["add", "cats"], "is not a known task"),
        (["add", "Pets!", *images], "use lower-case letters"),
        (["add", "pets", "--images", str(place / "none")], "no such folder or zip"),
        (["add", "pets", *images, "--prompts", "4,2"], "must grow"),
        (["add", "pets", *images, "--prompts", "two"], "write whole numbers"),
        (["add", "pets", *images, "--architecture", "vit_giant"], "is not a timm model"),
        (["add", "pets", "--own-head"], "import it with: fedstill import"),
        (["add", "pets", "--embedding", "--prompts", "2"], "drop --prompts"),
        (["add", "pets", "--embedding", "--own-head"], "drop --own-head"),
        (["remove", "cats"], "is not active"),
        (["activate", "pets", "9"], "has no version 9"),
        ([*profile, "--schedules", "fast"], "is not a schedule of 6 layers"),
        ([*profile, "--schedules=-50,-60"], "are the same on 100 patches"),
        ([*profile, "--schedules", "4"], "suits all of the tasks"),
        ([*profile, "--batches", "4,2"], "not ascending"),
        ([*profile, "--images", "pets"], "write NAME=PATH"),
    ):
        result = run(place, *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert said in result.output, arguments
        assert result.output.count("\n") == 1, result.output
    nothing = CliRunner().invoke(app, ["tasks", "list", "--registry", str(place / "nowhere")])
    assert (nothing.exit_code, (place / "nowhere").exists()) == (2, False)
    empty = CliRunner().invoke(app, ["tasks", "remove", "pets", "--registry", str(place / "tasks")])
    assert empty.exit_code == 0
    assert "serves no task" in run(place, *profile).output
