"""An operator has a service's next teacher made, or is told why not; the fleet's folder stays whole either way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.clip_files import write_clip_files
from helpers.command import CliRunner
from helpers.runs import silent_console, tiny_experiment

from fedstill.cli.main import app
from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import FolderInUse, sole_user
from fedstill.datasets.audiovisual.store import open_store
from fedstill.simulation.deployment import prepare_deployment
from fedstill.simulation.launcher import load_run
from fedstill.simulation.retrain import retrain


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Of a service with two devices."""
    folder = tmp_path / "state"
    prepare_deployment(tiny_experiment(tmp_path), folder, silent_console())
    write_plan(replace(read_plan(folder), clients=2, devices=("hall", "kitchen")))
    return folder


def files_of(folder: Path) -> dict[Path, bytes]:
    """What must not change if nothing is to change; the lock and the journal are not its content."""
    kept = "plan.json", "experiment.json", "public", "teachers"
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] in kept
    }


def test_without_a_change_nothing_happens(state: Path) -> None:
    before = files_of(state)
    assert retrain(state, None, silent_console()) is None
    assert files_of(state) == before
    assert not (state / "teachers").exists()
    said = CliRunner().invoke(app, ["fleet", "retrain", "--state", str(state)])
    assert said.output == "nothing that the teacher is made of has changed\n"


def test_other_settings_are_another_teacher_of_the_same_clips(state: Path, tmp_path: Path) -> None:
    longer = tiny_experiment(tmp_path, ["teacher.epochs=2"])
    with pytest.raises(ConfigError, match=r"holds another experiment; .* fedstill fleet retrain$"):
        prepare_deployment(longer, state, silent_console())
    said = CliRunner().invoke(
        app,
        ["fleet", "retrain", "--state", str(state), "--experiment", str(tmp_path / "tiny.toml"),
         "--set", "teacher.epochs=2"],
    )  # fmt: skip
    assert said.output == (
        "teacher 2 is made when the coordinator starts, then every device gets a student of it\n"
    )
    plan = read_plan(state)
    assert (plan.teacher_number, plan.teacher.epochs) == (2, 2)
    assert (plan.public, plan.models) == (str(state / "public"), state / "teachers" / "2")
    assert (plan.devices, plan.service) == (("hall", "kitchen"), True)
    prepare_deployment(longer, state, silent_console())  # the coordinator's next start
    assert read_plan(state).teacher_number == 2
    assert retrain(state, longer, silent_console()) is None


def test_how_the_cloud_works_makes_no_other_teacher_and_is_not_lost(state: Path, tmp_path: Path) -> None:
    slower = tiny_experiment(tmp_path, ["compute.workers=3", "run.reply_timeout=77"])
    assert retrain(state, slower, silent_console()) is None
    prepare_deployment(slower, state, silent_console())  # the coordinator's next start
    plan = read_plan(state)
    assert (plan.compute.workers, plan.reply_timeout, plan.teacher_number) == (3, 77, 1)
    assert (plan.devices, plan.service) == (("hall", "kitchen"), True)


def test_other_public_clips_are_another_teacher(tmp_path: Path) -> None:
    """The experiment is the same: its manifest has one public clip more, and then another label."""
    state, manifest = tmp_path / "state", write_clip_files(tmp_path / "clips")
    experiment = tiny_experiment(tmp_path, ["dataset.kind=manifest", f"dataset.manifest={manifest}"])
    prepare_deployment(experiment, state, silent_console())
    assert retrain(state, None, silent_console()) is None
    first = open_store(state / "public")
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[:-1], lines[-1].replace(",private,", ",public,")]) + "\n")
    assert retrain(state, None, silent_console()) == 2
    plan = read_plan(state)
    assert plan.public == str(state / "teachers" / "2" / "public")
    assert len(open_store(Path(plan.public))) == len(first) + 1
    assert len(open_store(state / "public")) == len(first), "those of the first teacher stay"
    assert retrain(state, None, silent_console()) is None
    text = manifest.read_text()
    manifest.write_text(text.replace(",calm,", ",fear,", 1))
    assert retrain(state, None, silent_console()) == 3


def test_without_the_present_clips_nothing_is_decoded(state: Path, tmp_path: Path) -> None:
    shutil.rmtree(state / "public")
    longer = tiny_experiment(tmp_path, ["teacher.epochs=2"])
    with pytest.raises(
        ConfigError, match=r"public: the clips of the present teacher .*fedstill fleet restore\)$"
    ):
        retrain(state, longer, silent_console())
    assert not (state / "teachers").exists()


def test_an_attempt_that_was_cut_off_is_made_whole(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, longer = files_of(state), tiny_experiment(tmp_path, ["teacher.epochs=2"])
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("fedstill.simulation.retrain.write_plan", full)
        with pytest.raises(OSError, match="No space left"):
            retrain(state, longer, silent_console())
    assert files_of(state) == before
    (state / "teachers" / "2" / "public").mkdir(parents=True)
    (state / "teachers" / "2" / "public" / "rubbish").touch()
    with monkeypatch.context() as patch:  # killed between the plan and the experiment
        patch.setattr("fedstill.simulation.retrain.replace_text", full)
        with pytest.raises(OSError, match="No space left"):
            retrain(state, longer, silent_console())
    assert read_plan(state).teacher_number == 2
    assert retrain(state, longer, silent_console()) is None, "the same teacher is not ordered twice"
    assert load_run(state).teacher.epochs == 2


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("dataset.class_count=5", "the classes are others"),
        ("audio.mel_bins=40", r"\[audio\], \[frames\]: devices have their clips in another form"),
        ("student.encoder.width=4", "devices have another network"),
        ("teacher.feature_width=32", "devices have another network"),
        ("run.first_seed=1", "a fleet keeps its seed"),
    ],
)
def test_what_does_not_fit_the_devices_is_refused_and_nothing_changes(
    override: str, reason: str, state: Path, tmp_path: Path
) -> None:
    before = files_of(state)
    with pytest.raises(ConfigError, match=reason):
        retrain(state, tiny_experiment(tmp_path, [override]), silent_console())
    assert files_of(state) == before


def test_it_needs_a_service_that_does_not_run(state: Path, tmp_path: Path) -> None:
    with sole_user(state), pytest.raises(FolderInUse, match="stop that one"):
        retrain(state, None, silent_console())
    for arguments, reason in (
        (["--state", str(tmp_path / "nowhere")], "not a coordinator's folder"),
        (["--state", str(state), "--set", "teacher.epochs=2"], "give that, too"),
        (["--state", str(state), "--experiment", "nothing"], "no such experiment"),
    ):
        said = CliRunner().invoke(app, ["fleet", "retrain", *arguments])
        assert (said.exit_code, len(said.output.splitlines())) == (2, 1)
        assert reason in said.output
    write_plan(replace(read_plan(state), service=False))
    with pytest.raises(ConfigError, match="a study"):
        retrain(state, None, silent_console())
